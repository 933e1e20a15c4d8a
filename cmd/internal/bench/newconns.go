package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/encap/packet"
)

// connCost is the CPU time of new connections of a few packets each, in nanoseconds a connection.
type connCost struct {
	total   Sample // of the generator, whose CPU carries packets to the director, and of the director's process
	process Sample // of the director's process
}

// connPackets are the flags of a connection's packets from the client. With VS/TUN no other packets pass the director.
var connPackets = []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagPSH | packet.FlagACK,
	packet.FlagPSH | packet.FlagACK, packet.FlagFIN | packet.FlagACK, packet.FlagACK}

const (
	connEvery = time.Millisecond // between two bursts: 64,000 packets a second
	delivered = 0.98             // of the packets, below which a measurement is repeated
)

// pathConnsOff is the path of new connections without the fast path. Its director is in the lab whose packets pass no
// BPF program, and its connection table has the size of the fast path's director's.
const pathConnsOff = "new connections, without fast path"

// openConnsOff opens the path pathConnsOff.
func (b *bed) openConnsOff(ctx context.Context) (*path, error) {
	to := b.findPath(pathDirectorAll)
	a := to.addr.As4()
	a[3] += byte(len(b.paths))
	w := &path{name: pathConnsOff, addr: netip.AddrFrom4(a), mac: to.mac, host: to.host, link: to.link, room: fastRoom}
	if err := b.lab.Router.Route(w.addr, b.lab.Director.Addr); err != nil {
		return nil, err
	}
	return w, b.startDirector(ctx, w, allCPUs, b.bin, service("tcp", w.addr, discardPort, ipip.keys,
		realserver(ipip.sink, 0)))
}

// measureNewConnections measures new connections without and with the fast path.
func (b *bed) measureNewConnections(ctx context.Context, o Options, r *results) error {
	if b.fast == nil {
		return nil
	}
	off, err := b.openConnsOff(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", pathConnsOff, err)
	}
	o.status("new connections, %d rounds", o.timing.rounds)
	type side struct {
		in   *bed
		path *path
		cost *connCost
	}
	both := []side{{b, off, &r.connsOff}, {b.fast, b.fast.findPath(pathFast), &r.connsFast}}
	for round := range o.timing.rounds {
		for _, m := range inRound(round, both) {
			err := r.repeat(ctx, o, func() error { return m.in.newConnections(ctx, m.path, o.timing.conns, m.cost) })
			if err != nil {
				return err
			}
		}
	}
	return off.process.Stop()
}

// newConnections opens connections at a fixed rate, and adds their cost to c. The number is rounded up to whole bursts.
func (b *bed) newConnections(ctx context.Context, w *path, count int, c *connCost) error {
	count = (count + lab.Burst - 1) / lab.Burst * lab.Burst
	before, err := w.host.Received(w.link)
	if err != nil {
		return err
	}
	own, err := cpuTime(w.process.Pid())
	if err != nil {
		return err
	}
	var generator time.Duration
	first := b.opened
	b.opened += count
	err = b.lab.Client.Do(func() error {
		if err := pin(b.machine.GeneratorCPU); err != nil {
			return err
		}
		blaster, err := lab.NewBlaster("")
		if err != nil {
			return fmt.Errorf("generator: %w", err)
		}
		defer blaster.Close()
		generator, err = openConns(ctx, blaster, w, b.lab.Client.Addr, first, count)
		return err
	})
	if err != nil {
		return err
	}
	packets := count * len(connPackets)
	arrived, err := w.awaitDelivered(ctx, before, uint64(delivered*float64(packets)))
	if err != nil {
		return err
	}
	if float64(arrived) < delivered*float64(packets) {
		return fmt.Errorf("%s: of %d packets of new connections %d arrived%s", w.name, packets, arrived, w.lastWords())
	}
	now, err := cpuTime(w.process.Pid())
	if err != nil {
		return err
	}
	conns := float64(count)
	c.process = append(c.process, float64((now-own).Nanoseconds())/conns)
	c.total = append(c.total, float64((now-own+generator).Nanoseconds())/conns)
	return nil
}

// openConns sends the packets of connections, 64 connections at a time, in bursts. first is the number of the first. It
// returns the CPU time of this thread.
func openConns(ctx context.Context, b *lab.Blaster, w *path, from netip.Addr, first, count int) (time.Duration, error) {
	frames := make([][]byte, lab.Burst)
	for i := range frames {
		frames[i] = segment(b.MAC(), w.mac, w.addr)
	}
	tick := time.NewTicker(connEvery)
	defer tick.Stop()
	begin, err := threadTime()
	if err != nil {
		return 0, err
	}
	for done := 0; done < count; done += lab.Burst {
		for stage := range connPackets {
			for i := range frames {
				source, port := flowSource(from, (first+done+i)%fastRoom)
				setSegment(frames[i], source, port, stage)
			}
			for sent := 0; sent < len(frames); {
				n, err := b.Send(len(frames)-sent, func(i int) []byte { return frames[sent+i] })
				if err != nil {
					return 0, err
				}
				sent += n
			}
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-tick.C:
			}
		}
	}
	end, err := threadTime()
	return end - begin, err
}

// segment makes a frame with a TCP segment without data, of 60 bytes, as far as it is the same for all connections.
func segment(source, mac net.HardwareAddr, to netip.Addr) []byte {
	f := make([]byte, frameLen)
	ether := packet.Ethernet(f)
	ether.SetDst([6]byte(mac))
	ether.SetSrc([6]byte(source))
	ether.SetType(packet.EtherTypeIPv4)
	ip := packet.IPv4(ether.Payload())
	ip.Encode(packet.IPv4Fields{
		TotalLen: packet.IPv4HeaderLen + packet.TCPHeaderLen, TTL: 64, Protocol: packet.ProtoTCP, Dst: to.As4(),
	})
	return f
}

// setSegment makes a frame that of a connection's packet. The TCP checksum, which no host on the path reads, is left
// out.
func setSegment(f []byte, source netip.Addr, port uint16, stage int) {
	ip := packet.IPv4(packet.Ethernet(f).Payload())
	ip.SetSrc(source.As4())
	ip.SetChecksum()
	tcp := packet.TCP(ip[packet.IPv4HeaderLen:])
	tcp.SetSrcPort(port)
	tcp.SetDstPort(discardPort)
	tcp.SetSeq(uint32(stage + 1))
	tcp.SetHeaderLen(packet.TCPHeaderLen)
	tcp.SetFlags(connPackets[stage])
}

// threadTime returns the CPU time of the calling thread.
func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of this thread: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
