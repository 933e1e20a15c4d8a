package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"vstun/cmd/internal/lab"
)

const (
	iperfPort   = 5201
	iperfMarker = "Server listening"
	serverGrace = time.Second // for the server to end after its client
)

// iperf measures one TCP stream between the client and the path's web server, and returns the receiver's bits a second.
// Each stream has a new server: a server may still be busy with the previous stream. On a fast path the stream must
// have got there.
func (p *tcpPath) iperf(ctx context.Context, download bool, seconds int, more ...string) (rate float64, err error) {
	promotion, err := p.watchPromotion(ctx)
	if err != nil {
		return 0, err
	}
	if rate, err = p.bed.iperf(ctx, p.server(), p.addr, p.port, download, seconds, more); err == nil {
		err = promotion.done(ctx, 1)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w%s", p.name, err, p.lastWords())
	}
	return rate, nil
}

// stream adds the rate of a TCP stream to r.
func (p *tcpPath) stream(ctx context.Context, o Options, r *results, download bool) error {
	return r.repeat(ctx, o, func() error {
		rate, err := p.iperf(ctx, download, o.timing.stream)
		if err == nil {
			k := streamKey{p.name, download}
			r.streams[k] = append(r.streams[k], rate)
		}
		return err
	})
}

// iperf measures one TCP stream between the client and an address of the host web. port is the server's port.
func (b *bed) iperf(ctx context.Context, web *lab.Host, to netip.Addr, port int, download bool, seconds int,
	more []string) (rate float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+upTimeout)
	defer cancel()
	server, err := web.Start(exec.Command("iperf3", "-s", "-1", "-p", strconv.Itoa(port), "--forceflush"))
	if err != nil {
		return 0, err
	}
	defer func() {
		select {
		case <-server.Done(): // the server ends with its test
		case <-time.After(serverGrace):
			_ = server.Stop() // its exit status after SIGTERM is not 0
		}
	}()
	if err := await(ctx, server, "is ready", func() bool {
		return strings.Contains(server.Output(),
			iperfMarker)
	}); err != nil {
		return 0, fmt.Errorf("iperf3 server: %w", err)
	}
	args := []string{"-c", to.String(), "-p", strconv.Itoa(iperfPort), "-t", strconv.Itoa(seconds), "-J",
		"--connect-timeout", "3000"}
	if args = append(args, more...); download {
		args = append(args, "-R")
	}
	out, err := b.lab.Client.Run(exec.CommandContext(ctx, "iperf3", args...))
	if ctx.Err() != nil {
		return 0, fmt.Errorf("iperf3 to %s did not end in time: %w", to, ctx.Err())
	}
	rate, parsed := iperfRate(out)
	if err = errors.Join(err, parsed); err != nil {
		return 0, fmt.Errorf("iperf3 to %s: %w", to, err)
	}
	return rate, nil
}

// iperfRate reads the receiver's rate, in bits a second, from the JSON that iperf3 -J prints.
func iperfRate(out []byte) (float64, error) {
	var report struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(out), &report); err != nil {
		return 0, fmt.Errorf("its report: %w", err)
	}
	if report.Error != "" {
		return 0, errors.New(report.Error)
	}
	if report.End.Received.Rate <= 0 {
		return 0, errors.New("nothing was received")
	}
	return report.End.Received.Rate, nil
}

// findPath returns the path with this name.
func (b *bed) findPath(name string) *path {
	for _, w := range b.paths {
		if w.name == name {
			return w
		}
	}
	panic("bench: no path is called " + name)
}
