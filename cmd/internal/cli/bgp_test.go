package cli

import (
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

func TestPrintBGP(t *testing.T) {
	b := &api.BGP{AS: 65010, State: "announcing", Announced: []string{"198.51.100.80"},
		Withdrawn: []string{"198.51.100.81", "198.51.100.82"}, Elsewhere: []string{"198.51.100.82"},
		Peers: []api.BGPPeer{
			{Address: "10.0.2.1", AS: 65000, State: "established", Since: 7, Announced: 1, BFD: "up",
				RouterID: "192.0.2.1", Local: "10.0.2.2", HoldTime: 9, Sent: 6, Received: 8},
			{Address: "10.0.3.1", AS: 65000, State: "down", Since: 7, Reason: "the connection is refused",
				Fix: "a fix"},
		}}
	const want = "BGP AS 65010: 1 VIP announced, 2 not\n" +
		"peer 10.0.2.1 AS 65000: established for 7s, 1 VIP, BFD up\n" +
		"peer 10.0.3.1 AS 65000: DOWN for 7s: the connection is refused: a fix\n" +
		"  10.0.2.1     router 192.0.2.1  from 10.0.2.2  hold time 9s  6 sent  8 received\n" +
		"not announced  198.51.100.81, 198.51.100.82 (another master)\n"
	var out strings.Builder
	if err := printBGP(&out, b); err != nil || out.String() != want {
		t.Errorf("%v\n%q\nwant\n%q", err, out.String(), want)
	}
	b.State = "standby"
	out.Reset()
	if err := printBGP(&out, b); err != nil || !strings.Contains(out.String(), "2 not, STANDBY\n") {
		t.Errorf("%v\n%q", err, out.String())
	}
	out.Reset()
	if err := printBGP(&out, nil); err != nil || out.String() != "" {
		t.Errorf("%v: %q", err, out.String())
	}
}
