package wire

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"testing"
)

// pairOfDatagrams opens two sockets, of which the first sends to the second.
func pairOfDatagrams(t *testing.T, six bool) (a, b *Datagrams, to Ends) {
	t.Helper()
	var all []*Datagrams
	for range 2 {
		d, err := OpenDatagrams(0, six)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		all = append(all, d)
	}
	port, err := all[1].Port()
	if err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddr("127.0.0.1")
	if six {
		host = netip.IPv6Loopback()
	}
	return all[0], all[1], Ends{Peer: netip.AddrPortFrom(host, port)}
}

// receiveAll receives n datagrams by calls for most datagrams each.
func receiveAll(t *testing.T, d *Datagrams, n, most int) (all [][]byte, from Ends) {
	t.Helper()
	bufs, sizes, ends := make([][]byte, most), make([]int, most), make([]Ends, most)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for len(all) < n {
		got, err := d.Receive(bufs, sizes, ends)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			all = append(all, bytes.Clone(bufs[i][:sizes[i]]))
			from = ends[i]
		}
	}
	return all, from
}

// TestDatagrams: datagrams of every mixture of sizes arrive as they were sent, and the answers go back.
func TestDatagrams(t *testing.T) {
	for _, six := range []bool{false, true} {
		a, b, to := pairOfDatagrams(t, six)
		for round, lens := range [][]int{{1}, {0}, {0, 0, 3}, {1400, 1400, 1400, 9}, {9, 1400, 1400, 1400, 1400},
			{40, 30, 20, 10}, {10, 20, 30, 40}, make([]int, 200), {20000, 20000, 20000, 20000, 65507}} {
			var sent [][]byte
			for i, n := range lens {
				if len(lens) == 200 {
					n = 1200
				}
				sent = append(sent, bytes.Repeat([]byte{byte(round + i)}, n))
			}
			if err := a.Send(sent, to); err != nil {
				t.Fatalf("IPv6 %v, round %d: %v", six, round, err)
			}
			got, from := receiveAll(t, b, len(sent), 1+round*7)
			for i := range sent {
				if !bytes.Equal(got[i], sent[i]) {
					t.Fatalf("IPv6 %v, round %d: datagram %d has %d bytes, want %d", six, round, i, len(got[i]),
						len(sent[i]))
				}
			}
			if from.Own != to.Peer.Addr() {
				t.Fatalf("came to %v, want %v", from.Own, to.Peer.Addr())
			}
			if err := b.Send([][]byte{{1, 2, 3}}, from); err != nil {
				t.Fatal(err)
			}
			if back, _ := receiveAll(t, a, 1, 1); !bytes.Equal(back[0], []byte{1, 2, 3}) {
				t.Fatalf("answer %x", back[0])
			}
		}
		if n := b.Overruns(); n != 0 {
			t.Errorf("%d overruns", n)
		}
	}
}

// TestDatagramsTooLarge: a datagram that its buffer cannot hold is none, and affects no other.
func TestDatagramsTooLarge(t *testing.T) {
	a, b, to := pairOfDatagrams(t, false)
	if err := a.Send([][]byte{make([]byte, 100), make([]byte, 100), make([]byte, 7)}, to); err != nil {
		t.Fatal(err)
	}
	bufs := [][]byte{make([]byte, 50), make([]byte, 150), make([]byte, 50)}
	sizes, ends := make([]int, 3), make([]Ends, 3)
	for n := 0; n < 3; {
		got, err := b.Receive(bufs[n:], sizes[n:], ends[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += got
	}
	if sizes[0] != 0 || sizes[1] != 100 || sizes[2] != 7 {
		t.Errorf("sizes %v", sizes)
	}
}

// TestDatagramsClose: Close ends a Receive, and what is called later.
func TestDatagramsClose(t *testing.T) {
	a, b, to := pairOfDatagrams(t, true)
	ended := make(chan error)
	go func() {
		_, err := b.Receive([][]byte{make([]byte, 9)}, make([]int, 1), make([]Ends, 1))
		ended <- err
	}()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive ends with %v", err)
	}
	if err := b.Send([][]byte{{1}}, to); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	port, err := a.Port()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDatagrams(port, true); err == nil {
		t.Error("two sockets have one port")
	}
}

func TestDatagramsAllocations(t *testing.T) {
	a, b, to := pairOfDatagrams(t, false)
	out := make([][]byte, 64)
	for i := range out {
		out[i] = make([]byte, 1400)
	}
	bufs, sizes, ends := make([][]byte, 128), make([]int, 128), make([]Ends, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	if n := testing.AllocsPerRun(200, func() {
		if err := a.Send(out, to); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(out); {
			got, err := b.Receive(bufs, sizes, ends)
			if err != nil {
				t.Fatal(err)
			}
			n += got
		}
	}); n >= 1 {
		t.Errorf("%v allocations for %d datagrams", n, len(out))
	}
}
