package nft

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/encap/packet"
)

// TestRules gives the kernel rulesets by nft(8) and iptables(8), reads them back, and evaluates them for packets.
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
	syn := PacketSpec{Packet: request(vip), UnknownSource: true, IIF: "eth0", OIF: "vs0", State: New, ReversePath: true,
		Index: map[string]int{"eth0": 2, "vs0": 3}}
	later, six, lost := syn, syn, syn
	later.State, six.Packet, lost.Packet, lost.ReversePath = Invalid, request(vip6), request(vip6), false
	base := func(policy string) string {
		return "add table inet t; add chain inet t f { type filter hook forward priority 0; policy " + policy +
			"; }; add chain inet t other; "
	}
	legacy := func(rules string) string { return "iptables " + rules }
	for _, c := range []struct {
		name, ruleset          string
		syn, later, six, lost6 Tristate // dropped?
	}{
		{"no rules", "", No, No, No, No},
		{"policy", base("drop"), Yes, Yes, Yes, Yes},
		{"established only", base("drop") + "add rule inet t f ct state established,related accept", Yes, Yes, Yes,
			Yes},
		{"new ones", base("drop") + "add rule inet t f ct state new accept", No, Yes, No, No},
		{"invalid", base("accept") + "add rule inet t f ct state invalid drop", No, Yes, No, No},
		{"map", base("accept") + "add rule inet t f ct state vmap { established : accept, invalid : drop, new : " +
			"jump other }; add rule inet t other tcp dport 80 reject", Yes, Yes, Yes, Yes},
		{"device", base("drop") + `add rule inet t f oifname "vs*" accept`, No, No, No, No},
		{"other device", base("drop") + `add rule inet t f oifname != "vs0" accept`, Yes, Yes, Yes, Yes},
		{"family", base("drop") + "add rule inet t f meta nfproto ipv6 accept", Yes, Yes, No, No},
		{"address", base("accept") + "add rule inet t f ip daddr 198.51.100.0/24 drop", Yes, Yes, No, No},
		{"ports", base("accept") + "add rule inet t f tcp dport { 22, 79-81 } drop", Yes, Yes, Yes, Yes},
		{"other ports", base("accept") + "add rule inet t f tcp dport { 22, 81-90 } drop", No, No, No, No},
		{"not these ports", base("drop") + "add rule inet t f tcp dport != 80-90 drop; add rule inet t f tcp dport " +
			"0-1023 accept", No, No, No, No},
		{"some clients", base("drop") + "add rule inet t f ip saddr 10.0.0.0/8 accept", Maybe, Maybe, Yes, Yes},
		{"blocked clients", base("accept") + "add rule inet t f ip saddr 203.0.113.0/24 drop", Maybe, Maybe, No,
			No},
		{"rate", base("accept") + "add rule inet t f limit rate over 10/second drop", Maybe, Maybe, Maybe,
			Maybe},
		{"reverse path", base("accept") + "add chain inet t pre { type filter hook prerouting priority raw; }; add " +
			"rule inet t pre meta nfproto ipv6 fib saddr . iif oif missing drop", No, No, No, Yes},
		{"return", base("drop") + "add rule inet t f jump other; add rule inet t f accept; add rule inet t other " +
			"tcp dport 80 return; add rule inet t other drop", No, No, No, No},
		{"goto", base("drop") + "add rule inet t f goto other; add rule inet t f accept; add rule inet t other tcp " +
			"dport 22 accept", Yes, Yes, Yes, Yes},
		{"Docker", legacy("-P FORWARD DROP"), Yes, Yes, No, No},
		{"Docker with states", legacy("-P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate NEW -j ACCEPT"), No,
			Yes, No, No},
		{"Docker with ports", legacy("-P FORWARD DROP; iptables -A FORWARD -o vs0 -p tcp -m tcp --dport 80 -j ACCEPT"),
			No, No, No, No},
		{"REJECT", legacy("-A FORWARD -p tcp -m tcp --dport 80 -j REJECT"), Yes, Yes, No, No},
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
			var r *Ruleset
			if err := h.Do(func() (err error) { r, err = Read(); return err }); err != nil {
				t.Fatal(err)
			}
			for name, p := range map[string]struct {
				PacketSpec
				want Tristate
			}{"SYN": {syn, c.syn}, "later": {later, c.later}, "IPv6": {six, c.six},
				"IPv6, reached otherwise": {lost, c.lost6}} {
				before, after := p.PacketSpec, p.PacketSpec
				before.OIF = ""
				got := max(r.Evaluate(&before, Prerouting).Drops, r.Evaluate(&after, Forward).Drops)
				if got != p.want {
					t.Errorf("%s is dropped: %d, want %d", name, got, p.want)
				}
			}
		})
	}
}

// request is a SYN to port 80.
func request(vip netip.Addr) []byte {
	syn := make(packet.TCP, packet.TCPHeaderLen)
	syn.SetSrcPort(1024)
	syn.SetDstPort(80)
	syn.SetHeaderLen(len(syn))
	syn.SetFlags(packet.FlagSYN)
	if vip.Is4() {
		h := make(packet.IPv4, packet.IPv4HeaderLen)
		h.Encode(packet.IPv4Fields{TotalLen: len(h) + len(syn), TTL: 64, Protocol: packet.ProtoTCP,
			Src: [4]byte{192, 0, 2, 1}, Dst: vip.As4()})
		return append(h, syn...)
	}
	h := make(packet.IPv6, packet.IPv6HeaderLen)
	h.Encode(packet.IPv6Fields{TotalLen: len(h) + len(syn), HopLimit: 64, NextHeader: packet.ProtoTCP,
		Src: netip.MustParseAddr("2001:db8::1").As16(), Dst: vip.As16()})
	return append(h, syn...)
}

// TestNotrack: rules that keep packets from connection tracking have an effect in front of it, and no packet is invalid
// then.
func TestNotrack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root for network namespaces")
	}
	for tool, debian := range map[string]string{"nft": "nftables", "iptables-nft": "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s: apt-get install %s", tool, debian)
		}
	}
	l, err := lab.New(lab.Spec{Prefix: fmt.Sprintf("notrack%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	chain := func(priority, rule string) string {
		return "nft add table inet n; nft add chain inet n p '{ type filter hook prerouting priority " + priority +
			"; }'; nft add rule inet n p " + rule
	}
	for _, c := range []struct {
		name, commands string
		drops          Tristate
	}{
		{"none", "true", Yes},
		{"notrack", chain("raw", "ip daddr 198.51.100.80 notrack"), No},
		{"for another address", chain("raw", "ip daddr 198.51.100.81 notrack"), Yes},
		{"too late", chain("-200", "notrack"), Yes},
		{"perhaps", chain("raw", "limit rate 1/second notrack"), Yes},
		{"iptables", "iptables-nft -t raw -A PREROUTING -d 198.51.100.80 -j CT --notrack", No},
		{"iptables with a zone", "iptables-nft -t raw -A PREROUTING -d 198.51.100.80 -j CT --zone 7", Yes},
	} {
		t.Run(c.name, func(t *testing.T) {
			commands := "nft flush ruleset; nft add table inet t; nft add chain inet t f '{ type filter hook forward " +
				"priority 0; }'; nft add rule inet t f ct state invalid drop; " + c.commands
			if out, err := l.Director.Run(exec.Command("sh", "-ec", commands)); err != nil {
				t.Skipf("SKIPPED: needs a kernel with this expression: %v: %s", err, out)
			}
			var rules *Ruleset
			if err := l.Director.Do(func() (err error) {
				rules, err = Read()
				return err
			}); err != nil {
				t.Fatal(err)
			}
			p := PacketSpec{Packet: request(netip.MustParseAddr("198.51.100.80")), IIF: "eth0", OIF: "vs0",
				State: Invalid, Index: map[string]int{"eth0": 2, "vs0": 3}}
			rules.Evaluate(&p, Prerouting)
			if v := rules.Evaluate(&p, Forward); v.Drops != c.drops {
				t.Errorf("%v, want %v", v.Drops, c.drops)
			}
		})
	}
}
