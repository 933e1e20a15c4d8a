package ping

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

func newPinger(t *testing.T) *Pinger {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: raw sockets need root")
	}
	p, err := NewPinger()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestAnswers: an answer of another host, or with other data, is ignored.
func TestAnswers(t *testing.T) {
	p := newPinger(t)
	p.mu.Lock()
	p.waiting[token{1}] = waiter{netip.MustParseAddr("127.0.0.1"), make(chan struct{})}
	p.mu.Unlock()
	p.answer(token{1}, &net.IPAddr{IP: net.IPv4(127, 0, 0, 2)})
	p.answer(token{2}, &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if len(p.waiting) != 1 {
		t.Error("the answer of another host was accepted")
	}
}

// TestPingFrom pings this host from an address, and by a device: one that does not lead to the address gets no answer.
func TestPingFrom(t *testing.T) {
	p := newPinger(t)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	to, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.9")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, from := range []From{{}, {Source: other}, {Device: lo.Index}, {Source: other, Device: lo.Index, ID: 7}} {
		if err := p.PingFrom(ctx, to, from); err != nil {
			t.Errorf("%+v: %v", from, err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	const absent = 1 << 30
	if err := p.PingFrom(short, to, From{Device: absent}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("by a device that is not there: %v", err)
	}
}
