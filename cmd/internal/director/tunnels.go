package director

import (
	"context"
	"errors"
	"os"
	"reflect"
	"sync"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/tunnel"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/encap/wire"
)

// peerTunnels is the director's point-to-point tunnels, and the sockets that they receive from.
type peerTunnels struct {
	*tunnel.Set
	receivers wire.Receivers
}

// open opens what a reload may need: the director has no right to open raw sockets then. The sockets receive nothing
// until apply.
func (t *peerTunnels) open(cfg *config.Director, s *sealed, o tunnel.Options) (err error) {
	o.Control, o.Queues, o.Offload, o.Sources, o.Sealed = cfg.Control, cfg.Queues, cfg.Offload, cfg.Queues+1, s.device
	t.Set, err = tunnel.Open(o)
	if err != nil {
		return err
	}
	if t.receivers, err = wire.NewReceivers(cfg.Queues); err != nil {
		return err
	}
	if err := t.receivers.Spare(tunnel.SpareSockets()...); err != nil {
		return err
	}
	s.inbound.Store(t.Inbound(cfg.Queues, nil))
	return nil
}

// apply puts the tunnels of cfg in force.
func (t *peerTunnels) apply(cfg *config.Director) error {
	opened, err := t.receivers.Open(tunnel.Sockets(cfg.Tunnels)...)
	if err != nil {
		return err
	}
	defer opened.Close()
	if err := t.Apply(cfg.Tunnels, 0); err != nil {
		return err
	}
	return opened.Use()
}

// change puts the tunnels of is in force in place of those of was, if they differ. revert undoes that.
func (t *peerTunnels) change(was, is *config.Director) (revert func() error, err error) {
	revert = func() error { return nil }
	if reflect.DeepEqual(was.Tunnels, is.Tunnels) {
		return revert, nil
	}
	if err := t.apply(is); err != nil {
		return revert, errors.Join(err, t.apply(was))
	}
	t.Look() // soon WireGuard has other peers
	return func() error { return t.apply(was) }, nil
}

// run works until ctx is cancelled.
func (t *peerTunnels) run(ctx context.Context) error {
	var loops sync.WaitGroup
	failed := make(chan error, len(t.receivers))
	for i, r := range t.receivers {
		loops.Go(func() { failed <- receive(t.Inbound(i, r)) })
	}
	end := func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		}
	}
	err := daemon.Run(ctx, t.Run, end)
	err = errors.Join(err, t.receivers.Close())
	loops.Wait()
	return err
}

// receive lets in take the packets of tunnels, until its source is closed. It drops the other packets.
func receive(in *endpoint.Inbound) error {
	bufs := packet.NewBufs(receiveBatch)
	for {
		if _, err := in.ReadBatch(bufs); errors.Is(err, os.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// receiveBatch is the number of packets that are received at once.
const receiveBatch = 64

// read adds the packets to sum that came to a tunnel's port, and belong to none.
func (t *peerTunnels) read(sum *stats.Tally) {
	if t.Set != nil {
		t.Read(sum)
	}
}

// close removes the tunnels.
func (t *peerTunnels) close() error {
	var errs []error
	if t.Set != nil {
		errs = append(errs, t.Close())
	}
	if err := t.receivers.Close(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
