package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"vstun/cmd/internal/lab"
	"vstun/encap/packet"
)

// TestRules lets the kernel take rulesets from nft(8) and iptables(8), and judges packets by what it gives back.
func TestRules(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root for network namespaces")
	}
	for tool, debian := range map[string]string{"nft": "nftables", "iptables-nft": "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s: apt-get install %s", tool, debian)
		}
	}
	l, err := lab.New(lab.Spec{Prefix: fmt.Sprintf("doctor%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := l.Director
	try := `nft add table inet try; nft add chain inet try f '{ type filter hook prerouting priority 0; }'; nft add ` +
		`rule inet try f ct state invalid fib saddr . iif oif missing limit rate 1/second drop; iptables-nft -A ` +
		`FORWARD -m conntrack --ctstate NEW -j REJECT`
	if _, err := h.Run(exec.Command("sh", "-ec", try)); err != nil {
		t.Skipf("SKIPPED: needs a kernel with nftables, its expressions ct, fib and limit, and iptables' conntrack: %v",
			err)
	}
	vip, vip6 := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("2001:db8:100::80")
	syn := suspect{packet: request(vip, packet.ProtoTCP, 80), anybody: true, iif: "eth0", oif: "vs0",
		state: expr.CtStateBitNEW, back: true, index: map[string]int{"eth0": 2, "vs0": 3}}
	later, six, lost := syn, syn, syn
	later.state, six.packet, lost.packet, lost.back = expr.CtStateBitINVALID, request(vip6, packet.ProtoTCP, 80),
		request(vip6, packet.ProtoTCP, 80), false
	base := func(policy string) string {
		return "add table inet t; add chain inet t f { type filter hook forward priority 0; policy " + policy +
			"; }; add chain inet t other; "
	}
	legacy := func(rules string) string { return "iptables " + rules }
	for _, c := range []struct {
		name, ruleset          string
		syn, later, six, lost6 truth // dropped?
	}{
		{"no rules", "", no, no, no, no},
		{"policy", base("drop"), yes, yes, yes, yes},
		{"established only", base("drop") + "add rule inet t f ct state established,related accept", yes, yes, yes,
			yes},
		{"new ones", base("drop") + "add rule inet t f ct state new accept", no, yes, no, no},
		{"invalid", base("accept") + "add rule inet t f ct state invalid drop", no, yes, no, no},
		{"map", base("accept") + "add rule inet t f ct state vmap { established : accept, invalid : drop, new : " +
			"jump other }; add rule inet t other tcp dport 80 reject", yes, yes, yes, yes},
		{"device", base("drop") + `add rule inet t f oifname "vs*" accept`, no, no, no, no},
		{"other device", base("drop") + `add rule inet t f oifname != "vs0" accept`, yes, yes, yes, yes},
		{"family", base("drop") + "add rule inet t f meta nfproto ipv6 accept", yes, yes, no, no},
		{"address", base("accept") + "add rule inet t f ip daddr 198.51.100.0/24 drop", yes, yes, no, no},
		{"ports", base("accept") + "add rule inet t f tcp dport { 22, 79-81 } drop", yes, yes, yes, yes},
		{"other ports", base("accept") + "add rule inet t f tcp dport { 22, 81-90 } drop", no, no, no, no},
		{"not these ports", base("drop") + "add rule inet t f tcp dport != 80-90 drop; add rule inet t f tcp dport " +
			"0-1023 accept", no, no, no, no},
		{"some clients", base("drop") + "add rule inet t f ip saddr 10.0.0.0/8 accept", perhaps, perhaps, yes, yes},
		{"blocked clients", base("accept") + "add rule inet t f ip saddr 203.0.113.0/24 drop", perhaps, perhaps, no,
			no},
		{"rate", base("accept") + "add rule inet t f limit rate over 10/second drop", perhaps, perhaps, perhaps,
			perhaps},
		{"reverse path", base("accept") + "add chain inet t pre { type filter hook prerouting priority raw; }; add " +
			"rule inet t pre meta nfproto ipv6 fib saddr . iif oif missing drop", no, no, no, yes},
		{"return", base("drop") + "add rule inet t f jump other; add rule inet t f accept; add rule inet t other " +
			"tcp dport 80 return; add rule inet t other drop", no, no, no, no},
		{"goto", base("drop") + "add rule inet t f goto other; add rule inet t f accept; add rule inet t other tcp " +
			"dport 22 accept", yes, yes, yes, yes},
		{"Docker", legacy("-P FORWARD DROP"), yes, yes, no, no},
		{"Docker with states", legacy("-P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate NEW -j ACCEPT"), no,
			yes, no, no},
		{"Docker with ports", legacy("-P FORWARD DROP; iptables -A FORWARD -o vs0 -p tcp -m tcp --dport 80 -j ACCEPT"),
			no, no, no, no},
		{"REJECT", legacy("-A FORWARD -p tcp -m tcp --dport 80 -j REJECT"), yes, yes, no, no},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := "nft flush ruleset; "
			if rules, isLegacy := strings.CutPrefix(c.ruleset, "iptables "); isLegacy {
				script += "iptables() { iptables-nft \"$@\"; }; iptables " + rules
			} else if c.ruleset != "" {
				script += "nft -f - <<'END'\n" + c.ruleset + "\nEND"
			}
			if out, err := h.Run(exec.Command("sh", "-ec", script)); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var r *rules
			if err := h.Do(func() (err error) { r, err = readRules(); return err }); err != nil {
				t.Fatal(err)
			}
			for name, p := range map[string]struct {
				suspect
				want truth
			}{"SYN": {syn, c.syn}, "later": {later, c.later}, "IPv6": {six, c.six}, "IPv6, reached otherwise": {lost,
				c.lost6}} {
				before, after := p.suspect, p.suspect
				before.oif = ""
				got := max(r.judge(&before, *nftables.ChainHookPrerouting).drops,
					r.judge(&after, *nftables.ChainHookForward).drops)
				if got != p.want {
					t.Errorf("%s is dropped: %d, want %d", name, got, p.want)
				}
			}
		})
	}
}
