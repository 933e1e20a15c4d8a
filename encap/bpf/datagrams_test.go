package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// TestDatagrams: datagrams pass both programs in each tunnel. Those that a client's kernel sends as one GSO packet
// (UDP_SEGMENT) are left: see wrap in src/director.c.
func TestDatagrams(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d, r := newTestDirector(t), newTestRealserver(t)
	must(t, d.Attach(n.d0))
	enter(t, n.realserver)
	must(t, r.Attach(n.r0))
	enter(t, n.director)
	for _, outer := range []bool{false, true} {
		for _, c := range tunnels(outer) {
			for _, inner := range []bool{false, true} {
				for _, gso := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v with key %v, IPv6 in %v, IPv6 out %v, GSO %v", c.Kind, c.HasKey, inner, outer,
						gso), func(t *testing.T) { n.datagrams(t, d, r, c, inner, gso) })
				}
			}
		}
	}
}

// datagrams sends datagrams through a tunnel. It runs on its own goroutine.
func (n *network) datagrams(t *testing.T, d *Director, r *Realserver, c encap.Config, six, gso bool) {
	leave := lock(t)
	defer leave()
	const size, each, calls = 1000, 30, 10
	tunnel, err := encap.New(c)
	must(t, err)
	rules, _ := rulesOf(decapsulator(c))
	rules.Device, rules.LocalAddrs = n.tun, realservers[:]
	must(t, r.Set(rules))

	enter(t, n.realserver)
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pick(virtuals, six), 53)))
	must(t, err)
	defer server.Close()
	enter(t, n.client)
	client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	must(t, err)
	defer client.Close()
	if gso {
		raw, err := client.SyscallConn()
		must(t, err)
		var failed error
		must(t, raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
		}))
		must(t, failed)
	}

	from := client.LocalAddr().(*net.UDPAddr).AddrPort()
	flow := packet.Flow{Src: from.Addr().Unmap(), Dst: pick(virtuals, six), SrcPort: from.Port(), DstPort: 53,
		Proto: packet.ProtoUDP}
	ref, err := d.Add(n.path(t, &c.Destination, Path{Kind: Tunnel, IPv6: six, Tunnel: &tunnel}))
	must(t, err)
	_, err = d.Set([]Flow{{Flow: flow, Path: ref, Port: sourcePort}})
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(testkit.Patience)))
	for call := range calls {
		var all []byte
		for i := range each {
			all = append(all, bytes.Repeat([]byte{byte(call), byte(i)}, size/2)...)
		}
		for part := range slices.Chunk(all, size) {
			if gso {
				part = all
			}
			_, err := client.Write(part)
			must(t, err)
			if gso {
				break
			}
		}
		for i := range each {
			got := make([]byte, 2*size)
			k, err := server.Read(got)
			if want := all[i*size : (i+1)*size]; err != nil || !bytes.Equal(got[:k], want) {
				t.Fatalf("datagram %d of call %d: %d bytes, %v", i, call, k, err)
			}
		}
	}
	var packets, sent uint64
	must(t, errors.Join(d.Remove(ref),
		d.Delete([]packet.Flow{flow}, func(_ packet.Flow, s State) { packets, sent = s.Count.Since(0) })))
	want := uint64(calls * each)
	if gso {
		want = 0
	}
	if packets != want || sent < want*size {
		t.Errorf("%d packets, %d bytes passed the director's program; want %d packets", packets, sent, want)
	}
}

// TestNATEcho: with method NAT, datagrams go to the realserver's own address and port, and its answers come back from
// the VIP. Both directions pass the program, GSO packets whole.
func TestNATEcho(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d := newTestDirector(t)
	must(t, errors.Join(d.Attach(n.d0), d.Attach(n.d1)))
	for _, six := range []bool{false, true} {
		own := netip.AddrPortFrom(pick(realservers, six), 5353)
		vip := netip.AddrPortFrom(pick(virtuals, six), 53)
		enter(t, n.realserver)
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(own))
		must(t, err)
		defer server.Close()
		go func() {
			for b := make([]byte, 2000); ; {
				k, from, err := server.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(b[:k], from)
			}
		}()
		enter(t, n.client)
		client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(vip)) // takes answers from the VIP only
		must(t, err)
		defer client.Close()
		enter(t, n.director)
		p := n.path(t, nil, Path{Kind: NAT, IPv6: six, Realserver: own})
		p.TUN = loopback // in place of a TUN device: the look-up of replies' routes begins at a device
		ref, err := d.Add(p)
		must(t, err)
		from := client.LocalAddr().(*net.UDPAddr).AddrPort()
		flow := packet.Flow{Src: from.Addr().Unmap(), SrcPort: from.Port(), Dst: vip.Addr(), DstPort: vip.Port(),
			Proto: packet.ProtoUDP}
		back := packet.Flow{Src: own.Addr(), SrcPort: own.Port(), Dst: flow.Src, DstPort: flow.SrcPort,
			Proto: packet.ProtoUDP}
		_, err = d.Set([]Flow{{Flow: flow, Path: ref}, {Flow: back, Path: ref, VIP: vip.Addr(), Port: vip.Port()}})
		must(t, err)
		must(t, client.SetDeadline(time.Now().Add(testkit.Patience)))
		const size, each = 1000, 20
		raw, err := client.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
		}))
		must(t, err)
		var all []byte
		for i := range each {
			all = append(all, bytes.Repeat([]byte{byte(i)}, size)...)
		}
		_, err = client.Write(all)
		must(t, err)
		for i := range each {
			got := make([]byte, 2*size)
			if k, err := client.Read(got); err != nil || !bytes.Equal(got[:k], all[i*size:(i+1)*size]) {
				t.Fatalf("IPv6 %v: answer %d: %d bytes, %v", six, i, k, err)
			}
		}
		for f, want := range map[packet.Flow]uint64{flow: 1, back: each} {
			must(t, d.Delete([]packet.Flow{f}, func(_ packet.Flow, s State) {
				if packets, _ := s.Count.Since(0); packets != want {
					t.Errorf("%v: %d packets passed the program, want %d", f, packets, want)
				}
			}))
		}
	}
}
