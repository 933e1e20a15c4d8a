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
	pathPlainNAT = "plain forwarding by a gateway"
	pathNATAll   = "director, nat, all CPUs"
)

// maskedPort is the port of web1's server with nat. Replies from the port of plain forwarding's server do not pass the
// program.
const maskedPort = iperfPort + 1

// openMethods builds the labs of VS/DR and VS/NAT and starts their programs.
func (b *bed) openMethods(ctx context.Context, o Options) error {
	lan := lab.Spec{Prefix: o.Prefix + "-lan", Webs: 1, Network: lab.LAN}
	if _, err := layBed(o, b.machine, lan, func(in *bed) error { return b.openDR(ctx, in) }); err != nil {
		return err
	}
	masked := lab.Spec{Prefix: o.Prefix + "-nat", Webs: 1, Network: lab.NAT}
	_, err := layBed(o, b.machine, masked, func(in *bed) error { return b.openNAT(ctx, in) })
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
	w := &path{name: pathDRAll, addr: firstVIP, tcp: true, fast: true}
	in.paths = []*path{w}
	if err := in.startAgent(ctx, "encap = []"); err != nil {
		return err
	}
	if err := b.openTCPPath(ctx, in, w, dr.keys, realserver(in.web.Addr, 0)); err != nil {
		return err
	}
	b.methods = append(b.methods, tcpPath{&path{name: pathPlainLAN, addr: plainTCP}, in, iperfPort, true},
		tcpPath{w, in, iperfPort, true})
	return nil
}

// openNAT opens the TCP paths of VS/NAT in its lab. The director's policy rules are there during plain forwarding, too.
func (b *bed) openNAT(ctx context.Context, in *bed) error {
	w := &path{name: pathNATAll, addr: firstVIP, fast: true}
	if err := b.openTCPPath(ctx, in, w, nat.keys, realserver(in.web.Addr, maskedPort)); err != nil {
		return err
	}
	b.methods = append(b.methods, tcpPath{&path{name: pathPlainNAT, addr: in.web.Addr}, in, iperfPort, false},
		tcpPath{w, in, maskedPort, false})
	return nil
}

// openTCPPath starts the director of a path of TCP.
func (b *bed) openTCPPath(ctx context.Context, in *bed, w *path, keys, to string) error {
	if err := in.lab.Router.Route(w.addr, in.lab.Director.Addr); err != nil {
		return err
	}
	return in.startDirector(ctx, w, allCPUs, b.bin, service("tcp", w.addr, iperfPort, keys, to))
}
