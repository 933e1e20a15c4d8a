package wire

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// answers is sockets that receive this host's own ICMP messages.
type answers struct {
	t     *testing.T
	fds   [2]int // of IPv4 and IPv6
	pings uint16
}

func newAnswers(t *testing.T) *answers {
	t.Helper()
	a := &answers{t: t}
	for i, of := range [][2]int{{unix.AF_INET, unix.IPPROTO_ICMP}, {unix.AF_INET6, unix.IPPROTO_ICMPV6}} {
		fd, err := unix.Socket(of[0], unix.SOCK_RAW|unix.SOCK_CLOEXEC, of[1])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		a.fds[i] = fd
	}
	return a
}

// refused reports whether the kernel has answered the packet thrown for s with an ICMP error. A ping ends the wait.
func (a *answers) refused(s Socket) (refused bool) {
	a.t.Helper()
	a.pings++
	ping, fd, skip := []byte{packet.ICMPEcho, 0, 0, 0, 0x12, 0x34, 0, 0}, a.fds[0], packet.IPv4HeaderLen
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: local}
	if s.Over6 {
		ping[0], fd, to, skip = packet.ICMPv6Echo, a.fds[1], &unix.SockaddrInet6{Addr: [16]byte{15: 1}}, 0
	}
	binary.BigEndian.PutUint16(ping[6:], a.pings)
	if !s.Over6 {
		binary.BigEndian.PutUint16(ping[2:], packet.Checksum(ping))
	}
	if err := unix.Sendto(fd, ping, 0, to); err != nil {
		a.t.Fatal(err)
	}
	for b := make([]byte, 2048); ; {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			a.t.Fatal(err)
		}
		m := b[skip:n]
		switch {
		case m[0] == 3 || m[0] == 1 && s.Over6 || m[0] == 4 && s.Over6: // unreachable; parameter problem
			refused = true
		case (m[0] == 0 || m[0] == 129) && binary.BigEndian.Uint16(m[6:]) == a.pings:
			return refused
		}
	}
}

// ignored reports whether the kernel drops a packet for s in silence that no socket takes: UDP over IPv6 without
// checksum.
func ignored(s Socket) bool { return s.Protocol == packet.ProtoUDP && s.Over6 }

// TestSpare: a parked socket takes no packet and does not keep the kernel from answering. To use it needs no
// capability.
func TestSpare(t *testing.T) {
	inNamespace(t, func() {
		w, answers := newThrower(t), newAnswers(t)
		rs := mustReceivers(t, 2)
		if err := rs.Spare(rawSockets()...); err != nil {
			t.Fatal(err)
		}
		open := testkit.Descriptors(t, "")
		if err := rs.Spare(rawSockets()...); err != nil || testkit.Descriptors(t, "") != open {
			t.Errorf("once more: %v, %d descriptors, were %d", err, testkit.Descriptors(t, ""), open)
		}
		withoutRaw(t, func() {
			for round := range 2 {
				for _, s := range everySocket() {
					p := s.packetFor(0, make([]byte, 40))
					p[len(p)-1] = byte(round)
					w.throw(p)
					if !answers.refused(s) && !ignored(s) {
						t.Errorf("%s, not in use: the kernel does not refuse its packet", s)
					}
					o, err := rs.Open(s)
					if err != nil {
						t.Fatal(err)
					}
					w.throw(p)
					if answers.refused(s) {
						t.Errorf("%s, open: the kernel refuses its packet", s)
					}
					mustUse(t, o)
					got := read(t, rs)
					if len(got) != 1 || len(got[0]) < 40 || got[0][len(got[0])-1] != byte(round) {
						t.Errorf("%s: got %x, want the packet that came after Open", s, got)
					}
					o, err = rs.Open()
					if err != nil {
						t.Fatal(err)
					}
					mustUse(t, o)
				}
			}
		})
		if now := testkit.Descriptors(t, ""); now != open {
			t.Errorf("%d descriptors are open, were %d", now, open)
		}
	})
}

// TestOpenForNaught: after an error of Open, or Close, all is as before.
func TestOpenForNaught(t *testing.T) {
	inNamespace(t, func() {
		w, answers := newThrower(t), newAnswers(t)
		kept, gre := Socket{Protocol: packet.ProtoIPIP}, Socket{Protocol: packet.ProtoGRE}
		rs := mustReceivers(t, 2, kept)
		if err := rs.Spare(rawSockets()...); err != nil {
			t.Fatal(err)
		}
		open := testkit.Descriptors(t, "")
		taken, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(taken, &unix.SockaddrInet6{Port: 6080}); err != nil {
			t.Fatal(err)
		}
		free, busy := Socket{Protocol: packet.ProtoUDP, Port: 6081}, Socket{Protocol: packet.ProtoUDP, Port: 6080}
		if _, err := rs.Open(kept, gre, free, busy); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a port that is taken: %v", err)
		}
		unix.Close(taken)
		o, err := rs.Open(gre, Socket{Protocol: packet.ProtoUDP, Port: 6080})
		if err != nil {
			t.Fatal(err)
		}
		o.Close()
		o.Close()
		if now := testkit.Descriptors(t, ""); now != open {
			t.Errorf("%d descriptors are open, were %d", now, open)
		}
		for _, s := range everySocket() {
			w.throw(s.packetFor(0, make([]byte, 40)))
			if refused := answers.refused(s); refused == (s == kept) && !ignored(s) {
				t.Errorf("%s: refused %t", s, refused)
			}
		}
		if got := read(t, rs); len(got) != 1 {
			t.Errorf("%d packets, want that of the socket that stays", len(got))
		}
	})
}

// TestExchange: sockets that stay lose no packet while others are opened and closed.
func TestExchange(t *testing.T) {
	inNamespace(t, func() {
		kept := []Socket{{Protocol: packet.ProtoIPIP}, {Protocol: packet.ProtoUDP, Port: 6080},
			{Protocol: packet.ProtoGRE, Over6: true}}
		changing := [][]Socket{nil, {{Protocol: packet.ProtoIPv6}, {Protocol: packet.ProtoUDP, Port: 6081}},
			{{Protocol: packet.ProtoGRE}, {Protocol: packet.ProtoUDP, Port: 6080, Over6: true}}}
		rs := mustReceivers(t, 2, kept...)
		if err := rs.Spare(rawSockets()...); err != nil {
			t.Fatal(err)
		}
		w := newThrower(t)
		var readers sync.WaitGroup
		var got [2]int
		for i, r := range rs {
			readers.Go(func() {
				for bufs := packet.NewBufs(64); ; {
					n, err := r.ReadBatch(bufs)
					if errors.Is(err, os.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					for j := range bufs[:n] {
						p := bufs[j].Bytes()
						if p[len(p)-1] == 77 && bufs[j].Offload.GSO == packet.GSONone {
							got[i]++
						}
					}
				}
			})
		}
		open, sent := 0, 0
		for round := range 300 {
			// No more than the sockets hold: what they lose otherwise would be the test's fault.
			for flow := range 8 {
				for _, s := range kept {
					in := make([]byte, 60)
					in[0], in[15], in[59] = 0x45, byte(flow), 77
					if s.Protocol == packet.ProtoGRE {
						in = append([]byte{0, 0, 8, 0}, in...)
					}
					w.throw(s.packetFor(0, in))
					sent++
				}
			}
			o, err := rs.Open(slices.Concat(changing[round%3], kept)...)
			if err != nil {
				t.Fatal(err)
			}
			mustUse(t, o)
			if n := testkit.Descriptors(t, ""); round == 2 {
				open = n
			} else if round%3 == 2 && n != open {
				t.Fatalf("%d descriptors are open, were %d", n, open)
			}
		}
		var lost uint64
		for _, r := range rs {
			lost += r.Overruns()
		}
		testkit.Eventually(t, "nothing waits in the sockets", func() bool { return waiting(rs) == 0 })
		if err := rs.Close(); err != nil {
			t.Error(err)
		}
		readers.Wait()
		if got[0]+got[1] != sent || lost != 0 {
			t.Errorf("%v packets came, %d overruns; %d were sent", got, lost, sent)
		}
		open = testkit.Descriptors(t, "")
		o, err := rs.Open(Socket{Protocol: packet.ProtoUDP, Port: 6082}) // when the program ends meanwhile
		if err == nil {
			err = o.Use()
		}
		if !errors.Is(err, os.ErrClosed) || testkit.Descriptors(t, "") != open {
			t.Errorf("closed receivers: %v, %d descriptors are open, were %d", err, testkit.Descriptors(t, ""), open)
		}
	})
}

func rawSockets() []Socket {
	return slices.DeleteFunc(everySocket(), func(s Socket) bool { return s.Protocol == packet.ProtoUDP })
}

func mustUse(t *testing.T, o *Opened) {
	t.Helper()
	if err := o.Use(); err != nil {
		t.Fatal(err)
	}
	o.Close() // does nothing
}

// waiting is how many sockets have something to read.
func waiting(rs Receivers) (n int) {
	for _, r := range rs {
		if r.fds.Acquire() != nil {
			return n
		}
		for i := range r.used {
			_, _, err := unix.Recvfrom(int(r.fds.Num(i)), make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK)
			if err == nil {
				n++
			}
		}
		r.fds.Release()
	}
	return n
}

// read reads what waits.
func read(t *testing.T, rs Receivers) (all [][]byte) {
	t.Helper()
	bufs := packet.NewBufs(4)
	for _, r := range rs {
		for waiting(Receivers{r}) > 0 {
			n, err := r.ReadBatch(bufs)
			if err != nil {
				t.Fatal(err)
			}
			for i := range bufs[:n] {
				all = append(all, slices.Clone(bufs[i].Bytes()))
			}
		}
	}
	return all
}
