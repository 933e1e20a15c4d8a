package top

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"vstun/cmd/internal/api"
)

// status is the status of two services after seconds of a steady load.
func status(seconds uint64) *api.DirectorStatus {
	return &api.DirectorStatus{Version: "1", Pid: 7, Uptime: float64(100 + seconds), TUN: "vs0", Queues: 2,
		In:          api.Traffic{Packets: 5000 * seconds, Bytes: 1_000_000 * seconds},
		Drops:       map[string]uint64{"no_service": 3, "no_connection": 20 * seconds},
		Connections: api.Connections{Count: 12, Max: 1000}, Services: []api.Service{
			{Name: "web", VIPs: []string{"198.51.100.80", "2001:db8:100::80"}, Protocol: "tcp",
				Ports: []string{"80", "443"}, Scheduler: "wlc", Health: "up", Realservers: []api.Realserver{
					{Address: "10.0.11.2", Weight: 2, Health: "down", Check: &api.Check{Reason: "connection refused"}},
					{Address: "10.0.12.2", Weight: 3, Health: "up", Active: 7, Inactive: 5, Connections: 10 * seconds,
						Forwarded: api.Traffic{Packets: 2000 * seconds, Bytes: 500_000 * seconds}},
				}},
			{Name: "dns", VIPs: []string{"2001:db8:100::80"}, Protocol: "udp", Ports: []string{"53"}, Scheduler: "rr",
				Realservers: []api.Realserver{
					{Address: "2001:db8:1111:2222:3333:4444:5555:6666",
						Forwarded: api.Traffic{Packets: 12_300_000 * seconds, Bytes: 984_000_000 * seconds}}}},
		}}
}

func looked() *view {
	v, begin := &view{}, time.Unix(1_000_000, 0)
	v.take(begin, status(10))
	v.take(begin.Add(2*time.Second), status(12))
	return v
}

func text(v *view, width int) (all string) {
	for _, l := range v.lines(width) {
		all += l.text + "\n"
	}
	return all
}

// TestRates: a realserver and its service have the rates between two statuses.
func TestRates(t *testing.T) {
	v := looked()
	rows := v.rates()
	if len(rows) != 5 {
		t.Fatalf("%d rows: %+v", len(rows), rows)
	}
	for _, r := range []row{rows[0], rows[2]} { // of two realservers one has traffic
		if r.Conns != 10 || r.Packets != 2000 || r.Bits != 4_000_000 || r.Active != 7 || r.Inactive != 5 {
			t.Errorf("%+v, want 10 connections, 2000 packets and 4 Mbit a second", r)
		}
	}
	if rows[0].Weight != 5 || rows[3].Service != "dns" {
		t.Errorf("%+v", rows)
	}
	got := text(v, 0)
	for _, want := range []string{"in 5000 pps, 8.0M bit/s", "dropped a second: no_connection 20",
		"connections 12 of 1000", "connection refused", "12.3M", "7.9G",
		"web tcp 198.51.100.80:80,443 +1 wlc"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	restarted := status(1)
	restarted.Pid++
	v.take(v.at.Add(time.Second), restarted)
	for _, r := range v.rates() {
		if r.Conns != 0 || r.Packets != 0 || r.Bits != 0 {
			t.Errorf("after the director's restart there is a rate: %+v", r)
		}
	}
}

// TestOrders sorts services and realservers in every order.
func TestOrders(t *testing.T) {
	for order, want := range map[string]string{"configuration": "web 10.0.11.2 10.0.12.2 dns",
		"bit/s": "dns web 10.0.12.2 10.0.11.2", "active": "web 10.0.12.2 10.0.11.2 dns",
		"cps": "web 10.0.12.2 10.0.11.2 dns", "pps": "dns web 10.0.12.2 10.0.11.2",
		"name": "dns web 10.0.11.2 10.0.12.2"} {
		v := looked()
		n, ok := orderOf(order)
		if v.order = n; !ok {
			t.Fatalf("%s is unknown", order)
		}
		var got []string
		for _, r := range v.rates() {
			if name := r.Realserver; strings.Contains(name, "::") || strings.Contains(name, "1111") {
				continue
			} else if name == "" {
				got = append(got, r.Service)
			} else {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", order, got, want)
		}
	}
	if _, ok := orderOf("colour"); ok {
		t.Error("an order that is none")
	}
}

// TestNarrow: no line is wider than the terminal, and 40 columns suffice for a realserver's weight, health and
// connections.
func TestNarrow(t *testing.T) {
	v := looked()
	for _, width := range []int{20, 30, 40, 60, 80, 100, 132, 200} {
		all := text(v, width)
		for line := range strings.Lines(all) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("in %d columns there is a line of %d: %s", width, n, line)
			}
		}
		if width >= 40 && (!strings.Contains(all, "10.0.11.2") || !strings.Contains(all, "WEIGHT") ||
			!strings.Contains(all, "HEALTH") || !strings.Contains(all, "ACTIVE")) {
			t.Errorf("in %d columns:\n%s", width, all)
		}
		if width >= 132 && !strings.Contains(all, "2001:db8:1111:2222:3333:4444:5555:6666") {
			t.Errorf("in %d columns:\n%s", width, all)
		}
	}
}

func TestShort(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 0.25: "0.2", 9.94: "9.9", 9.96: "10", 9999: "9999", 9999.6: "10.0k",
		999949: "999.9k", 999951: "1.0M", 1.25e9: "1.2G", 9e17: "900.0P"} {
		if got := short(f); got != want || len(got) > 6 {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
	for n := 1.0; n < 1e17; n *= 1.7 {
		if got := short(n); len(got) > 6 {
			t.Errorf("%v: %s is too long", n, got)
		}
	}
	if got := fmt.Sprint(cut("abcdef", 3), cut("abc", 3), cut("äöü", 3), cut("abc", 0)); got != "ab…abcäöüabc" {
		t.Error(got)
	}
}
