package doctor

import (
	"fmt"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// silentPeer is the time without a packet after which a peer without a probe is worth a look.
const silentPeer = 5 * time.Minute

// pointToPoint examines the point-to-point tunnels of a program that runs. overhead returns the bytes that a tunnel
// adds to a packet of its device, by its name.
func (res *result) pointToPoint(all []api.Tunnel, overhead func(name string) int) {
	up := 0
	for i := range all {
		t := &all[i]
		where := "tunnel " + t.Name
		switch {
		case t.State != "up":
			res.find(Finding{Severity: Error, Where: where, What: "the tunnel is down: " + t.Reason,
				Why: "packets for it are lost", Causes: []string{"the peer does not run, or has other keys",
					"a router or firewall drops the encapsulation"},
				Remarks: []string{"run the doctor at the peer " + t.Remote,
					"compare encap, key, encap_port, local and remote of both ends"}})
			continue
		case t.Probe == nil && t.Heard == nil && t.Out.Packets > 0:
			res.find(Finding{Severity: Warning, Where: where, What: "the peer is silent: nothing has come from it",
				Why:     fmt.Sprintf("%s went to it", words.Count(t.Out.Packets, "packet")),
				Remarks: []string{"run the doctor at the peer " + t.Remote, "a probe tells sooner"}})
		case t.Probe == nil && t.Heard != nil && *t.Heard > silentPeer.Seconds():
			res.find(Finding{Severity: Hint, Where: where, What: fmt.Sprintf("the peer is silent for %v",
				(time.Duration(*t.Heard) * time.Second).Round(time.Second)), Remarks: []string{"a probe tells why"}})
		default:
			up++
		}
		if need := t.MTU + overhead(t.Name); t.PathMTU > 0 && need > t.PathMTU {
			res.find(Finding{Severity: Hint, Where: where, What: fmt.Sprintf("MTU %d does not fit the path", t.MTU),
				Why: fmt.Sprintf("a packet of this size has %d bytes in the tunnel, and the path takes %d: it leaves "+
					"in fragments, or not at all", need, t.PathMTU),
				Remarks: []string{"set a smaller mtu, or leave it out", "or give the path a larger MTU"}})
		}
	}
	if len(all) > 0 {
		res.fine("%d of %s up", up, words.Count(len(all), "tunnel"))
	} else {
		res.fine("no tunnel is configured")
	}
}
