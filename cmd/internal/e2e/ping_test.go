package e2e

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	protocol6 "golang.org/x/net/ipv6"

	"vstun/testdata/testkit"
)

// TestPing pings the VIP. The director answers, and sends nothing to a realserver.
func TestPing(t *testing.T) { testkit.Families(t, testPing) }

func testPing(t *testing.T, ipv6 bool) {
	s := newRunningSiteOf(t, ipv6, 1, service{"tcp", "80", "wrr", []int{1}})
	vip, client := &net.IPAddr{IP: s.VIP.AsSlice()}, s.Client.Addr.AsSlice()
	network, sizes := "ip4:icmp", []int{0, 56, 1400, 1472}
	var echo, reply, other icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, ipv4.ICMPTypeTimestamp
	var there, back []byte // pseudo-headers (RFC 4443, section 2.3)
	if ipv6 {
		network, sizes[3] = "ip6:ipv6-icmp", 1452
		echo, reply, other = protocol6.ICMPTypeEchoRequest, protocol6.ICMPTypeEchoReply,
			protocol6.ICMPTypeNodeInformationQuery
		there, back = icmp.IPv6PseudoHeader(client, vip.IP), icmp.IPv6PseudoHeader(vip.IP, client)
	}
	conn, err := s.Client.ListenPacket(network, s.Client.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	for seq, size := range sizes {
		body := &icmp.Echo{ID: 4711, Seq: seq, Data: payload(size)}
		request, err := (&icmp.Message{Type: echo, Body: body}).Marshal(there)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(request, vip); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		n, from, err := conn.ReadFrom(buf)
		for err == nil && from.String() != s.VIP.String() { // the router looks for its neighbours, with IPv6
			n, from, err = conn.ReadFrom(buf)
		}
		if err != nil {
			t.Fatalf("ping of %d bytes: %v", size, err)
		}
		want, err := (&icmp.Message{Type: reply, Body: body}).Marshal(back)
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != s.VIP.String() || !bytes.Equal(buf[:n], want) {
			t.Errorf("ping of %d bytes: %s answered %x, want %s and %x", size, from, buf[:n], s.VIP, want)
		}
	}

	// A damaged request, or another kind of message, gets no answer.
	stranger, err := (&icmp.Message{Type: other, Body: &icmp.RawBody{Data: make([]byte, 16)}}).Marshal(there)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.WriteTo(stranger, vip); err != nil {
		t.Fatal(err)
	}
	damaged := ipPacket(s.Client.Addr, s.VIP, uint8(echo.Protocol()), []byte{8, 0, 0xba, 0xd0, 0, 1, 0, 1})
	if ipv6 {
		damaged[40] = 128
	}
	evil := s.newInjector(s.Client)
	evil.send(evil.frame(damaged))
	in, out := uint64(len(sizes)+2), uint64(len(sizes))
	testkit.Within(t, "the director has seen all of it", soon, func() bool {
		return s.director.balance().In.Packets >= in
	})
	st := s.director.balance()
	if st.In.Packets != in || st.Out.Packets != out || st.Drops["bad_checksum"] != 1 || st.Drops["icmp"] != 1 ||
		sum(st.Drops) != 2 {
		t.Errorf("%d packets in, %d out, dropped %v; want %d, %d, bad_checksum 1 and icmp 1", st.In.Packets,
			st.Out.Packets, st.Drops, in, out)
	}
	if n := s.agents[0].intake().In.Packets; n != 0 {
		t.Errorf("%d packets reached the realserver", n)
	}
}
