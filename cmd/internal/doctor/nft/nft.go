// Package nft evaluates the firewall of this network namespace for one packet: the rules of nftables, those of
// iptables-nft included. It computes each rule's conditions as the kernel does (net/netfilter/nf_tables_core.c,
// nft_do_chain), with three values: a condition on an unknown fact is Maybe.
//
// The evaluator is hand-written: no library has one, and the kernel's own trace (nftrace) would add rules to the
// machine.
package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// Hook is a place in a packet's path through the kernel where base chains are evaluated.
type Hook int

// The hooks of the IP families (include/uapi/linux/netfilter.h, enum nf_inet_hooks).
const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
)

// State is connection tracking's state of a packet.
type State uint32

// The states that rules ask for with "ct state".
const (
	New         = State(expr.CtStateBitNEW)
	Established = State(expr.CtStateBitESTABLISHED)
	Related     = State(expr.CtStateBitRELATED)
	Invalid     = State(expr.CtStateBitINVALID)
	Untracked   = State(expr.CtStateBitUNTRACKED)
)

// PacketSpec is a packet as the firewall sees it.
type PacketSpec struct {
	Packet        []byte // from the IP header on, without options or extension headers
	UnknownSource bool   // its source address and port are not known
	IIF, OIF      string // input and output device; "" if the hook has none
	Index         map[string]int
	State         State
	ReversePath   bool // the host's route to the packet's source leads out of IIF (nftables' expression fib)
}

// Tristate is the value of a condition.
type Tristate int

// The values, in ascending order: min is "and", max is "or".
const (
	No Tristate = iota
	Maybe
	Yes
)

// Verdict is the result of a hook's base chains.
type Verdict struct {
	Drops Tristate
	Chain *Chain // the one that drops the packet; nil if Drops is No
}

// Chain is a chain of a table.
type Chain struct {
	Family     string // "ip", "ip6" or "inet", as nft(8) names it
	Table      string
	Name       string
	PolicyDrop bool // its policy is drop

	chain *nftables.Chain
	rules []*nftables.Rule
}

// Ruleset is the firewall of a network namespace.
type Ruleset struct {
	chains   []*Chain
	elements map[setName][]nftables.SetElement
	sets     map[setName]*nftables.Set
}

type setName struct {
	family nftables.TableFamily
	table  string
	set    string
}

// ErrNoTables reports that the kernel has no nftables.
var ErrNoTables = errors.New("the kernel has no nftables")

// Read reads the firewall. It changes nothing and needs CAP_NET_ADMIN.
func Read() (*Ruleset, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	r := &Ruleset{elements: map[setName][]nftables.SetElement{}, sets: map[setName]*nftables.Set{}}
	tables, err := conn.ListTables()
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return nil, ErrNoTables
	case err != nil:
		return nil, fmt.Errorf("nftables: %w: run as root, or with CAP_NET_ADMIN", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("nftables: list rules of %s: %w", c.Name, err)
		}
		r.chains = append(r.chains, &Chain{Family: familyName(c.Table.Family), Table: c.Table.Name, Name: c.Name,
			PolicyDrop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop, chain: c, rules: rules})
	}
	for _, t := range tables {
		if err := r.readSets(conn, t); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *Ruleset) readSets(conn *nftables.Conn, t *nftables.Table) error {
	sets, err := conn.GetSets(t)
	if err != nil {
		return fmt.Errorf("nftables: list sets of %s: %w", t.Name, err)
	}
	for _, s := range sets {
		name := setName{t.Family, t.Name, s.Name}
		r.sets[name] = s
		if r.elements[name], err = conn.GetSetElements(s); err != nil {
			return fmt.Errorf("nftables: list set %s: %w", s.Name, err)
		}
	}
	return nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// Evaluate returns the verdict on p at a hook. It evaluates the hook's base chains by priority, until one drops the
// packet. A rule with notrack changes p.State, also for the hooks that follow.
func (r *Ruleset) Evaluate(p *PacketSpec, hook Hook) Verdict {
	worst := Verdict{}
	for _, c := range r.baseChains(packet.Version(p.Packet), hook) {
		const conntrack = -200 // NF_IP_PRI_CONNTRACK of linux/netfilter_ipv4.h
		e := evaluation{Ruleset: r, PacketSpec: p, early: *c.chain.Priority < conntrack}
		if end := e.chain(c, Yes, 0); end == passes && c.PolicyDrop {
			e.drop(Yes)
		}
		if e.drops > worst.Drops {
			worst = Verdict{e.drops, c}
		}
		if worst.Drops == Yes {
			break
		}
	}
	return worst
}

// baseChains returns the base chains of an IP version at a hook, by priority. It omits NAT chains, which drop nothing.
func (r *Ruleset) baseChains(version int, hook Hook) []*Chain {
	family := nftables.TableFamilyIPv4
	if version == 6 {
		family = nftables.TableFamilyIPv6
	}
	var bases []*Chain
	for _, c := range r.chains {
		base := c.chain.Hooknum != nil && Hook(*c.chain.Hooknum) == hook && c.chain.Type != nftables.ChainTypeNAT
		if base && (c.chain.Table.Family == family || c.chain.Table.Family == nftables.TableFamilyINet) {
			bases = append(bases, c)
		}
	}
	slices.SortStableFunc(bases, func(a, b *Chain) int { return int(*a.chain.Priority) - int(*b.chain.Priority) })
	return bases
}
