package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/encap/wireguard"
)

// Names of the paths of WireGuard's lab. All lead over the same links to the same web server, whose answers go straight
// to the client:
//
//	director ═ WireGuard ═ agent                    packets, TCP uploads
//	director ═ gue ═ agent                          packets
//	kernel, wireguard-go ═ wireguard-go, kernel     TCP uploads
//
// wireguard-go is its own program, with a TUN device at either end. Clients' packets have the same size by both: what
// WireGuard's usual MTU of 1,420 bytes takes. The director's have ipip around them, which adds 20 bytes.
const (
	pathSealed      = "director, wireguard"
	pathSealedAll   = "director, wireguard, all CPUs"
	pathGUEBeside   = "director, gue, beside wireguard"
	pathWireGuardGo = "wireguard-go"
)

// wireguardGo is wireguard-go's program, beside this one.
const wireguardGo = "wireguard-go"

// sealedMSS is the MSS that the web server of wireguard-go advertises: what fits its tunnel. The agent advertises the
// same.
const sealedMSS = 1420 - 40

// sealedEnd is an end of WireGuard on the director's host or on the web server's.
type sealedEnd struct {
	key    wireguard.Key
	port   uint16     // UDP
	inside netip.Addr // in the tunnel; not used by wireguard-go
}

// newSealedEnd makes end n, with a key of its own. n differs among the ends on one host, and from the other end's.
func newSealedEnd(n byte) sealedEnd {
	return sealedEnd{wireguard.NewPrivateKey(), 51820 + uint16(n), netip.AddrFrom4([4]byte{10, 99, 0, n})}
}

// sealedBed is the lab of WireGuard.
type sealedBed struct {
	*bed
	far       sealedEnd            // the agent's
	directors map[string]sealedEnd // by the name of the path
}

// measureSealed builds the lab of WireGuard, and measures its rows.
func measureSealed(ctx context.Context, o Options, m Machine, r *results) (err error) {
	o.status("WireGuard: starting hosts and programs")
	s := &sealedBed{far: newSealedEnd(1), directors: map[string]sealedEnd{pathSealed: newSealedEnd(2),
		pathSealedAll: newSealedEnd(3)}}
	spec := lab.Spec{Prefix: o.Prefix + "-wg", Webs: 1}
	if s.bed, err = layBed(o, m, spec, func(in *bed) error {
		s.bed = in
		return s.start(ctx)
	}); err != nil {
		return fmt.Errorf("WireGuard: %w", err)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return inTurn(
		func() error { return s.measureUploads(ctx, o, r) },
		func() error { return s.uncut(func() error { return s.measurePackets(ctx, o, r) }) },
	)
}

// start starts the programs, except for wireguard-go.
func (s *sealedBed) start(ctx context.Context) error {
	l := s.lab
	mac, err := l.Router.MAC(l.Client.Name)
	if err != nil {
		return err
	}
	addr := firstVIP
	for _, name := range []string{pathSealed, pathSealedAll, pathGUEBeside} {
		s.paths = append(s.paths, &path{name: name, addr: addr, mac: mac, host: l.Router, link: l.Director.Name,
			tcp: true})
		if err := l.Router.Route(addr, l.Director.Addr); err != nil {
			return err
		}
		addr = addr.Next()
	}
	if err := errors.Join(s.forwards(), s.startSealedAgent(ctx)); err != nil {
		return err
	}
	for _, w := range s.paths {
		queues := onePinned
		if w.name == pathSealedAll {
			queues = allCPUs
		}
		if err := s.startSealedDirector(ctx, w, queues); err != nil {
			return err
		}
	}
	return nil
}

// startSealedAgent starts the web server's agent, with a key and with the directors as peers.
func (s *sealedBed) startSealedAgent(ctx context.Context) error {
	table, err := s.table(s.web.Name, s.far)
	if err != nil {
		return err
	}
	directors := []netip.Addr{s.lab.Director.Addr}
	for _, d := range s.directors {
		directors = append(directors, d.inside)
		table += fmt.Sprintf("[[wireguard.peer]]\naddress = %q\npublic_key = %q\nendpoint = %q\n", d.inside,
			d.key.Public(), netip.AddrPortFrom(s.lab.Director.Addr, d.port))
	}
	return s.startAgentOf(ctx, s.web, s.paths, directors, noFastPath+`encap = ["gue", "wireguard"]`+table)
}

// startSealedDirector starts the director of a path, and waits for its handshake.
func (s *sealedBed) startSealedDirector(ctx context.Context, w *path, queues int) error {
	keys, to, table := gue.keys, realserver(s.web.Addr, 0), ""
	own, sealed := s.directors[w.name]
	if sealed {
		var err error
		if table, err = s.table(fmt.Sprint(own.port), own); err != nil {
			return err
		}
		table += fmt.Sprintf("address = %q\n", own.inside)
		keys, to = `encap = "wireguard"`, realserver(s.far.inside, 0)
	}
	services := table + service("tcp", w.addr, iperfPort, keys, to)
	if sealed {
		to += fmt.Sprintf("  wireguard = { public_key = %q, endpoint = %q }\n", s.far.key.Public(),
			netip.AddrPortFrom(s.web.Addr, s.far.port))
	}
	services += service("udp", w.addr, discardPort, keys, to)
	if err := s.startDirector(ctx, w, queues, s.bin, services); err != nil || !sealed {
		return err
	}
	return await(ctx, w.process, "has had a handshake", func() bool {
		st, err := w.status(ctx)
		return err == nil && st.WireGuard != nil && st.WireGuard.Peers[0].Handshake != nil
	})
}

// table writes the key of an end, and returns its [wireguard] table in TOML.
func (s *sealedBed) table(name string, end sealedEnd) (string, error) {
	file := filepath.Join(s.dir, name+".key")
	if err := os.WriteFile(file, []byte(end.key.String()), 0o600); err != nil {
		return "", fmt.Errorf("key of WireGuard: %w", err)
	}
	return fmt.Sprintf("\n[wireguard]\nprivate_key = %q\nlisten = %d\n", file, end.port), nil
}

// startWireGuardGo starts wireguard-go on both hosts, and returns the path through it. The reverse-path filter of the
// web server's device is loose: the route to clients leads by another device.
func (s *sealedBed) startWireGuardGo(ctx context.Context, program string) (tcpPath, error) {
	const device = "wg0"
	l, own, far := s.lab, newSealedEnd(4), newSealedEnd(5)
	start := func(h *lab.Host, own, far sealedEnd, to netip.Addr, allowed, setUp string) error {
		public := far.key.Public()
		_, err := h.WireGuardGo(ctx, program, device, fmt.Sprintf("private_key=%x\nlisten_port=%d\npublic_key=%x\n"+
			"endpoint=%v\nallowed_ip=%s", own.key[:], own.port, public[:], netip.AddrPortFrom(to, far.port), allowed))
		if err != nil {
			return err
		}
		return feed(ctx, h, "link set "+device+" up\n"+setUp, "ip", "-batch", "-")
	}
	w := tcpPath{&path{name: pathWireGuardGo, addr: plainTCP}, s.bed, iperfPort, true}
	return w, inTurn(
		func() error { return l.Router.Route(plainTCP, l.Director.Addr) },
		func() error {
			return start(l.Director, own, far, s.web.Addr, plainTCP.String()+"/32", fmt.Sprintf("route add %v dev %s\n",
				plainTCP, device))
		},
		func() error {
			return start(s.web, far, own, l.Director.Addr, "0.0.0.0/0", fmt.Sprintf(
				"addr add %v/32 dev %s\nroute replace default via %v advmss %d\n", plainTCP, device, s.web.Addr.Prev(),
				sealedMSS))
		},
		func() error { return s.web.Sysctl("net.ipv4.conf."+device+".rp_filter", "2") },
	)
}

// measureUploads measures TCP uploads by the director and by wireguard-go, unless a program is missing.
func (s *sealedBed) measureUploads(ctx context.Context, o Options, r *results) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		r.skip(o, "TCP upload with WireGuard: iperf3 is not installed (make deps installs it)")
		return nil
	}
	program, err := exec.LookPath(filepath.Join(o.Bin, wireguardGo))
	if err != nil {
		r.skip(o, fmt.Sprintf("TCP upload with WireGuard: %s has no %s (make bench builds it)", o.Bin, wireguardGo))
		return nil
	}
	peer, err := s.startWireGuardGo(ctx, program)
	if err != nil {
		return err
	}
	paths := []tcpPath{{s.findPath(pathSealedAll), s.bed, iperfPort, true}, peer}
	o.status("WireGuard: TCP uploads, %d rounds", o.timing.rounds)
	for round := range o.timing.rounds {
		for _, p := range inRound(round, paths) {
			if err := p.stream(ctx, o, r, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// measurePackets measures the CPU time of small packets. The agent does not run meanwhile: packets end in the buffers
// of its sockets. So the generator has its CPU for itself, and packets of both tunnels take the same path.
func (s *sealedBed) measurePackets(ctx context.Context, o Options, r *results) error {
	o.status("WireGuard: packets, %d rounds", o.timing.floods)
	for round := range o.timing.floods {
		for _, w := range inRound(round, []*path{s.findPath(pathGUEBeside), s.findPath(pathSealed)}) {
			err := r.repeat(ctx, o, func() (err error) {
				if err := s.agent.Signal(unix.SIGSTOP); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, s.agent.Signal(unix.SIGCONT)) }()
				return s.flood(ctx, w, 1, 0, *o.timing, r.floodOf(w.name, 1))
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sealed adds the rows of WireGuard.
func (r *Report) sealed(res *results) {
	ours, peer := res.streams[streamKey{pathSealedAll, false}], res.streams[streamKey{pathWireGuardGo, false}]
	r.ratio("TCP upload, director with wireguard : wireguard-go", ours, peer, atLeast(0.9))
	sealed, gue := res.floods[floodKey{pathSealed, 1}], res.floods[floodKey{pathGUEBeside, 1}]
	if sealed != nil && gue != nil {
		r.ratio("CPU time per packet, director with wireguard : with gue, 1 flow", sealed.cpu, gue.cpu, nil)
	}
	r.figure("TCP upload, "+pathSealedAll, "Mbit/s", ours.times(1e-6))
	r.figure("TCP upload, "+pathWireGuardGo, "Mbit/s", peer.times(1e-6))
	for _, name := range []string{pathSealed, pathGUEBeside} {
		if f := res.floods[floodKey{name, 1}]; f != nil {
			r.figure(name+", 1 flow", "packets/s", f.delivered)
			r.figure(name+", 1 flow: CPU time", "ns/packet", f.cpu)
			r.doubt(name+", 1 flow", f)
		}
	}
}
