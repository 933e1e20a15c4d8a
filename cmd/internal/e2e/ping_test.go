package e2e

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// TestPing pings the VIP. The director answers, no realserver hears of it.
func TestPing(t *testing.T) {
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	conn, err := s.Client.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	vip := &net.IPAddr{IP: s.VIP.AsSlice()}
	sizes := []int{0, 56, 1400, 1472}
	for seq, size := range sizes {
		body := &icmp.Echo{ID: 4711, Seq: seq, Data: payload(size)}
		request, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: body}).Marshal(nil)
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
		if err != nil {
			t.Fatalf("ping of %d bytes: %v", size, err)
		}
		want, err := (&icmp.Message{Type: ipv4.ICMPTypeEchoReply, Body: body}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != s.VIP.String() || !bytes.Equal(buf[:n], want) {
			t.Errorf("ping of %d bytes: %s answered %x, want %s and %x", size, from, buf[:n], s.VIP, want)
		}
	}

	// A damaged request has no answer, and neither has another kind of message.
	damaged := []byte{8, 0, 0xba, 0xd0, 0, 1, 0, 1}
	timestamp, err := (&icmp.Message{Type: ipv4.ICMPTypeTimestamp, Body: &icmp.RawBody{Data: make([]byte, 16)}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{damaged, timestamp} {
		if _, err := conn.WriteTo(b, vip); err != nil {
			t.Fatal(err)
		}
	}
	in, out := uint64(len(sizes)+2), uint64(len(sizes))
	eventually(t, "the director has seen all of it", soon, func() bool { return s.director.balance().In.Packets >= in })
	st := s.director.balance()
	if st.In.Packets != in || st.Out.Packets != out || st.Drops["bad_checksum"] != 1 || st.Drops["icmp"] != 1 || sum(st.Drops) != 2 {
		t.Errorf("%d packets in, %d out, dropped %v; want %d, %d, bad_checksum 1 and icmp 1", st.In.Packets, st.Out.Packets, st.Drops, in, out)
	}
	if n := s.agents[0].intake().In.Packets; n != 0 {
		t.Errorf("%d packets reached the realserver", n)
	}
}
