package bench

import (
	"context"

	"vstun/cmd/internal/lab"
)

// Names of the paths of TCP streams by VS/DR and VS/NAT. Each method has a lab of its own with the network that it
// needs, and is compared with plain forwarding on the same links.
//
//	LAN: client ──► router ──► director ──► web1 ──► router ──► client
//	NAT: client ◄──► router ◄──► director ◄──► web1
const (
	pathPlainLAN = "plain forwarding in a LAN"
	pathDRAll    = "director, dr, all CPUs"
	pathDROff    = "director, dr, without fast path"
	pathPlainNAT = "plain forwarding by a gateway"
	pathNATAll   = "director, nat, all CPUs"
	pathNATOff   = "director, nat, without fast path"
)

// Ports of web1's server with nat. Replies from the port of plain forwarding's server do not pass a program.
const (
	maskedPort    = iperfPort + 1
	maskedPortOff = maskedPort + 1
)

// secondTable is the routing table of replies to the second director on a host.
const secondTable = 30326

// openMethods builds the labs of VS/DR and VS/NAT and starts their programs.
func (b *bed) openMethods(ctx context.Context, o Options) error {
	lan := lab.Spec{Prefix: o.Prefix + "-lan", Webs: 1, Network: lab.LAN}
	masked := lab.Spec{Prefix: o.Prefix + "-nat", Webs: 1, Network: lab.NAT}
	return inTurn(
		func() error { return b.open(o, lan, func(in *bed) error { return b.openDR(ctx, in) }) },
		func() error { return b.open(o, masked, func(in *bed) error { return b.openNAT(ctx, in) }) },
	)
}

// open builds a further lab, which ends with b. start starts its programs.
func (b *bed) open(o Options, spec lab.Spec, start func(in *bed) error) error {
	in, err := layBed(o, b.machine, spec, start)
	if err == nil {
		b.labs = append(b.labs, in)
	}
	return err
}

// openDR opens the TCP paths of VS/DR in its lab.
func (b *bed) openDR(ctx context.Context, in *bed) error {
	l := in.lab
	err := inTurn(in.forwards,
		func() error { return in.web.Own(plainTCP) },
		func() error { return l.Router.Route(plainTCP, l.Director.Addr) },
		func() error { return l.Director.Route(plainTCP, in.web.Addr) },
	)
	if err != nil {
		return err
	}
	in.paths = []*path{{name: pathDRAll, addr: firstVIP, tcp: true, fast: true},
		{name: pathDROff, addr: firstVIP.Next(), tcp: true}}
	if err := in.startAgent(ctx, in.web, in.paths, "encap = []"); err != nil {
		return err
	}
	b.methods = append(b.methods, tcpPath{&path{name: pathPlainLAN, addr: plainTCP}, in, iperfPort, true})
	for _, w := range in.paths {
		if err := b.openTCPPath(ctx, in, w, dr.keys, realserver(in.web.Addr, 0)); err != nil {
			return err
		}
		b.methods = append(b.methods, tcpPath{w, in, iperfPort, true})
	}
	return nil
}

// openNAT opens the TCP paths of VS/NAT in its lab. The directors' policy rules are there during plain forwarding, too.
func (b *bed) openNAT(ctx context.Context, in *bed) error {
	b.methods = append(b.methods, tcpPath{&path{name: pathPlainNAT, addr: in.web.Addr}, in, iperfPort, false})
	for _, to := range []tcpPath{
		{&path{name: pathNATAll, addr: firstVIP, fast: true}, in, maskedPort, false},
		{&path{name: pathNATOff, addr: firstVIP.Next(), table: secondTable}, in, maskedPortOff, false},
	} {
		if err := b.openTCPPath(ctx, in, to.path, nat.keys, realserver(in.web.Addr, to.port)); err != nil {
			return err
		}
		b.methods = append(b.methods, to)
	}
	return nil
}

// openTCPPath starts the director of a path of TCP.
func (b *bed) openTCPPath(ctx context.Context, in *bed, w *path, keys, to string) error {
	if err := in.lab.Router.Route(w.addr, in.lab.Director.Addr); err != nil {
		return err
	}
	return in.startDirector(ctx, w, allCPUs, b.bin, service("tcp", w.addr, iperfPort, keys, to))
}
