package bpf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/safchain/ethtool"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// upload is a TCP connection from the client to the VIP.
type upload struct {
	client, server net.Conn
	flow           packet.Flow
}

// dial opens a connection to the VIP.
func (n *network) dial(t testing.TB, six bool) *upload {
	t.Helper()
	enter(t, n.realserver)
	var l net.Listener
	testkit.Eventually(t, "listen", func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", net.JoinHostPort(pick(virtuals, six).String(), "80"))
		return err == nil
	})
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	enter(t, n.client)
	d := net.Dialer{Timeout: testkit.Patience}
	c, err := d.DialContext(context.Background(), "tcp", l.Addr().String())
	must(t, err)
	u := &upload{client: c, server: testkit.Receive(t, "connection", accepted)}
	t.Cleanup(u.close)
	enter(t, n.director)
	from, to := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	u.flow = packet.Flow{Src: from.Addr().Unmap(), Dst: to.Addr().Unmap(), SrcPort: from.Port(), DstPort: to.Port(),
		Proto: packet.ProtoTCP}
	return u
}

func (u *upload) close() { u.client.Close(); u.server.Close() }

// send sends size random bytes to the server and reports whether all arrived as they were sent.
func (u *upload) send(t testing.TB, size int64) {
	t.Helper()
	deadline := time.Now().Add(2 * testkit.Patience)
	must(t, u.client.SetDeadline(deadline))
	must(t, u.server.SetDeadline(deadline))
	want := make(chan []byte, 1)
	go func() {
		h := sha256.New()
		random := io.LimitReader(rand.New(rand.NewSource(1)), size)
		if _, err := io.Copy(io.MultiWriter(u.client, h), random); err != nil {
			want <- nil
			return
		}
		want <- h.Sum(nil)
	}()
	h := sha256.New()
	if got, err := io.CopyN(h, u.server, size); err != nil {
		t.Fatalf("%d of %d bytes arrived: %v", got, size, err)
	}
	if sent := testkit.Receive(t, "end of the upload", want); !bytes.Equal(h.Sum(nil), sent) {
		t.Fatal("the bytes that arrived are not those that were sent")
	}
}

// TestUpload: uploads pass both programs in each tunnel, with GSO packets whole, and arrive byte by byte. Both programs
// count the same packets.
func TestUpload(t *testing.T) { uploads(t, true) }

// TestSegmentedUpload is TestUpload with a link that segments GSO packets between director and realserver, as a network
// card does.
func TestSegmentedUpload(t *testing.T) { uploads(t, false) }

func uploads(t *testing.T, whole bool) {
	needRoot(t)
	n := newNetwork(t)
	if !whole {
		segment(t, "d1")
	}
	d, r := newTestDirector(t), newTestRealserver(t)
	must(t, d.Attach(n.d0))
	enter(t, n.realserver)
	must(t, r.Attach(n.r0))
	enter(t, n.director)
	for _, outer := range []bool{false, true} {
		for _, c := range tunnels(outer) {
			for _, inner := range []bool{false, true} {
				name := fmt.Sprintf("%v with key %v, IPv6 in %v, IPv6 out %v", c.Kind, c.HasKey, inner, outer)
				n.upload(t, name, d, r, c, inner, whole)
			}
		}
	}
}

// segment makes a device segment each packet in software before it leaves.
func segment(t testing.TB, device string) {
	t.Helper()
	e, err := ethtool.NewEthtool()
	must(t, err)
	defer e.Close()
	off := map[string]bool{}
	for _, of := range []string{"generic", "tcp", "tcp6", "tcp-ecn", "tcp-mangleid", "udp", "gre", "gre-csum", "ipxip4",
		"ipxip6", "udp_tnl", "udp_tnl-csum"} {
		off["tx-"+of+"-segmentation"] = false
	}
	must(t, e.Change(device, off))
}

// upload uploads through a tunnel.
func (n *network) upload(t *testing.T, name string, d *Director, r *Realserver, c encap.Config, six, whole bool) {
	t.Helper()
	tunnel, err := encap.New(c)
	must(t, err)
	rules, _ := rulesOf(decapsulator(c))
	rules.Device, rules.LocalAddrs = n.tun, realservers[:]
	must(t, r.Set(rules))
	u := n.dial(t, six)
	defer u.close()
	ref, err := d.Add(n.path(t, &c.Destination, Path{Kind: Tunnel, IPv6: six, Tunnel: &tunnel}))
	must(t, err)
	_, err = d.Set([]Flow{{Flow: u.flow, Path: ref, Port: sourcePort}})
	must(t, err)
	taken := func() Taken {
		all := map[netip.Addr]Taken{}
		must(t, r.Read(all))
		return all[c.Source]
	}
	before := taken()
	size := uint64(16 << 20)
	if !whole {
		size = 4 << 20
	}
	u.send(t, int64(size))
	after := taken()
	must(t, d.Remove(ref))
	var packets, sent uint64
	must(t, d.Delete([]packet.Flow{u.flow}, func(_ packet.Flow, s State) { packets, sent = s.Count.Since(0) }))
	got := Taken{after.Packets - before.Packets, after.Bytes - before.Bytes, after.Inner - before.Inner}
	want := Taken{packets, sent + packets*uint64(tunnel.Overhead()), sent}
	if !whole {
		if got.Packets < size/1500 || got.Bytes < sent || got.Bytes/got.Packets > 1500 {
			t.Errorf("%s: the realserver took %+v of %d bytes", name, got, sent)
		}
	} else if got != want {
		t.Errorf("%s: the realserver took %+v, the director sent %+v", name, got, want)
	}
	if sent < size {
		t.Errorf("%s: the director has sent %d bytes", name, sent)
	}
	if mean := sent / max(1, packets); mean < 8000 {
		t.Errorf("%s: packets of %d bytes: GSO packets are not whole", name, mean)
	}
}

// TestLinkUpload: with method DR, an upload reaches the realserver by its MAC address, with GSO packets whole.
func TestLinkUpload(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d := newTestDirector(t)
	must(t, d.Attach(n.d0))
	for _, six := range []bool{false, true} {
		u := n.dial(t, six)
		ref, err := d.Add(n.path(t, nil, Path{Kind: Link, IPv6: six}))
		must(t, err)
		_, err = d.Set([]Flow{{Flow: u.flow, Path: ref}})
		must(t, err)
		const size = 16 << 20
		u.send(t, size)
		must(t, d.Delete([]packet.Flow{u.flow}, func(_ packet.Flow, s State) {
			packets, sent := s.Count.Since(0)
			if sent < size || sent/packets < 8000 {
				t.Errorf("IPv6 %v: %d packets, %d bytes", six, packets, sent)
			}
		}))
		u.close()
	}
}
