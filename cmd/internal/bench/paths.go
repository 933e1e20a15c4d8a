package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vstun/balancer/keep"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
)

// path is the path of a datagram from the client to the host that counts and drops it. All paths are open at the same
// time, each with its own virtual address, so that a change of the path costs nothing.
type path struct {
	name    string
	addr    netip.Addr       // the virtual address
	mac     net.HardwareAddr // of the client's frames
	host    *lab.Host        // host that counts and drops the datagrams
	link    string           // link of host on which the datagrams arrive
	process *lab.Process     // the program on the path; nil: the kernel
	socket  string           // control socket of a director; "" for other paths
	tcp     bool             // the director has TCP services, for which web1 has an agent
	private bool             // the director's connection table is in private memory
	fast    bool             // the director has its fast path; false: it is switched off
	room    int              // connections in the director's table; 0: the default
	table   int              // the director's routing table; 0: the default
}

// Names of the paths.
const (
	pathRouter      = "dropped at router"
	pathAtDirector  = "dropped at director"
	pathPlain       = "plain forwarding"
	pathFloor       = "floor"
	pathNaive       = "naive"
	pathDirector    = "director"
	pathDirectorAll = "director, all CPUs"
	pathGUE         = "director, gue"
	pathGUEAll      = "director, gue, all CPUs"
	pathDR          = "director, dr"
	pathNAT         = "director, nat"
	pathPrivate     = "director, without keep"
)

// paths returns all paths with the functions that open them. A further tunnel format or forwarding method needs one
// more line. They are measured in this order: those that bars compare with pathDirector are beside it, since the
// machine's speed may change within a second.
func paths() []opening {
	return []opening{
		{pathRouter, (*bed).dropAtRouter},
		{pathAtDirector, (*bed).dropAtDirector},
		{pathPlain, (*bed).plain},
		{pathNaive, throughLoop(Naive)},
		{pathFloor, throughLoop(Floor)},
		{pathGUE, throughDirector(gue, onePinned, newPrograms)},
		{pathPrivate, withoutKeep(throughDirector(ipip, onePinned, newPrograms))},
		{pathDirector, throughDirector(ipip, onePinned, newPrograms)},
		{pathNAT, throughDirector(nat, onePinned, newPrograms)},
		{pathDR, throughDirector(dr, onePinned, newPrograms)},
		{pathDirectorAll, throughDirector(ipip, allCPUs, newPrograms)},
		{pathGUEAll, throughDirector(gue, allCPUs, newPrograms)},
	}
}

// forwarding is how a director forwards: keys of its services, in TOML, and the realserver that gets the datagrams. The
// realserver of dr is in the director's subnet.
type forwarding struct {
	keys string
	sink netip.Addr
	tcp  bool // web1 takes TCP by it
}

var (
	ipip = forwarding{`encap = "ipip"`, beyondSink, true}
	gue  = forwarding{`encap = "gue"`, beyondSink, true}
	dr   = forwarding{`forward = "dr"`, beyond, false}
	nat  = forwarding{`forward = "nat"`, beyondSink, false}
)

// openings returns the paths of this run.
func (b *bed) openings() []opening {
	switch {
	case b.against != "":
		return againstPaths()
	case b.kernel:
		return kernelPaths()
	}
	return paths()
}

type opening struct {
	name string
	open func(*bed, context.Context, *path) error
}

const (
	onePinned = 1 // one queue: the director runs on one CPU, as the loops do
	allCPUs   = 0 // a queue for each CPU, without pinning
)

// Addresses beside the lab's own. The host at the other end of the link drops datagrams to a sink.
var (
	firstVIP     = netip.AddrFrom4([4]byte{198, 51, 100, 81})
	plainTCP     = netip.AddrFrom4([4]byte{198, 51, 100, 70}) // web1's own
	beyond       = netip.AddrFrom4([4]byte{10, 0, 2, 8})      // the director's gateway to beyondSink
	beyondSink   = netip.AddrFrom4([4]byte{10, 0, 11, 9})     // destination of datagrams that leave the director
	directorSink = netip.AddrFrom4([4]byte{10, 0, 2, 9})      // destination of datagrams that reach the director
)

// bed is the lab with all paths and programs of the run.
type bed struct {
	lab     *lab.Lab
	machine Machine
	bin     string // directory of the programs
	against string // directory of the programs of another version; empty for none
	kernel  bool   // only what the kernel forwards is measured
	dir     string // configurations and sockets
	paths   []*path
	web     *lab.Host
	agent   *lab.Process // the last one that was started
	tables  []string     // that outlive the directors
	opened  int          // connections of newConnections

	labs    []*bed    // further ones, which end with this one
	methods []tcpPath // in labs of their own
	beside  []flooded // in labs of their own, compared with plain forwarding
	fast    *bed      // with the fast path; nil: not measured
}

// newBed builds the lab, opens all paths and starts their programs. On an error it leaves nothing behind.
func newBed(ctx context.Context, o Options, m Machine) (*bed, error) {
	return layBed(o, m, lab.Spec{Prefix: o.Prefix, Webs: 1}, func(b *bed) error { return b.start(ctx) })
}

// layBed builds a lab with a directory of its own. start starts its programs. On an error layBed leaves nothing behind.
func layBed(o Options, m Machine, spec lab.Spec, start func(*bed) error) (*bed, error) {
	l, err := lab.New(spec)
	if err != nil {
		return nil, err
	}
	b := &bed{lab: l, web: l.Webs[0], machine: m, bin: o.Bin, against: o.Against, kernel: o.Kernel}
	// An existing directory belongs to a dead benchmark: a running one would have the prefix.
	dir := filepath.Join("/run", spec.Prefix)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return nil, errors.Join(fmt.Errorf("directory for configurations and sockets: %w", err), b.close())
	}
	b.dir = dir
	if err := start(b); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bed) start(ctx context.Context) error {
	if err := b.prepare(); err != nil {
		return err
	}
	routerMAC, err := b.lab.Router.MAC(b.lab.Client.Name)
	if err != nil {
		return err
	}
	addr := firstVIP
	for _, o := range b.openings() {
		w := &path{name: o.name, addr: addr, mac: routerMAC, host: b.lab.Router, link: b.lab.Director.Name}
		if err := o.open(b, ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		b.paths = append(b.paths, w)
		addr = addr.Next()
	}
	return b.startAgent(ctx, b.web, b.paths, noFastPath+tunnels)
}

// prepare sets up what all paths need: forwarding without ICMP redirects on the director, the sinks, and plain TCP's
// route.
func (b *bed) prepare() error {
	l := b.lab
	return inTurn(b.forwards,
		func() error { return l.Director.Sink("eth0", beyond) },
		func() error { return l.Director.Route(beyondSink, beyond) },
		func() error { return l.Router.Sink(l.Director.Name, directorSink) },
		func() error { return b.web.Own(plainTCP) },
		func() error { return l.Router.Route(plainTCP, l.Director.Addr) },
		func() error { return l.Router.RouteFrom(l.Director.Name, plainTCP, b.web.Addr) },
	)
}

// forwards makes the director's kernel a router that sends no ICMP redirects.
func (b *bed) forwards() error {
	d := b.lab.Director
	return inTurn(
		func() error { return d.Sysctl("net.ipv4.ip_forward", "1") },
		func() error { return d.Sysctl("net.ipv4.conf.all.send_redirects", "0") },
		func() error { return d.Sysctl("net.ipv4.conf.eth0.send_redirects", "0") },
	)
}

// inTurn takes steps until one fails.
func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bed) dropAtRouter(_ context.Context, w *path) error {
	w.mac, w.host, w.link = lab.UnknownMAC(), b.lab.Router, b.lab.Client.Name
	return nil
}

func (b *bed) dropAtDirector(_ context.Context, w *path) error {
	w.host, w.link = b.lab.Director, "eth0"
	return b.lab.Router.Route(w.addr, directorSink)
}

func (b *bed) plain(_ context.Context, w *path) error {
	return errors.Join(b.lab.Router.Route(w.addr, b.lab.Director.Addr), b.lab.Director.Route(w.addr, beyond))
}

// throughLoop opens a path through one of the loops, on the director's CPU.
func throughLoop(kind string) func(*bed, context.Context, *path) error {
	return func(b *bed, ctx context.Context, w *path) (err error) {
		if err := b.lab.Router.Route(w.addr, b.lab.Director.Addr); err != nil {
			return err
		}
		cmd := exec.Command(filepath.Join(b.bin, "lab"), loopName, kind, "--tun", "vs-"+kind, "--vip", w.addr.String(),
			"--from", b.lab.Director.Addr.String(), "--to", beyondSink.String(), "--journal",
			filepath.Join(b.dir, kind+".journal"))
		if w.process, err = b.lab.Director.StartOn(b.machine.DirectorCPU, cmd); err != nil {
			return err
		}
		return await(ctx, w.process, "is ready", func() bool {
			return strings.Contains(w.process.Output(),
				loopMarker)
		})
	}
}

// newPrograms and oldPrograms return the directories of the programs that are measured.
func newPrograms(b *bed) string { return b.bin }
func oldPrograms(b *bed) string { return b.against }

// throughDirector opens a path through a director of its own, whose program is in the directory programs.
func throughDirector(f forwarding, queues int, programs func(*bed) string) func(*bed, context.Context, *path) error {
	return func(b *bed, ctx context.Context, w *path) (err error) {
		if err := b.lab.Router.Route(w.addr, b.lab.Director.Addr); err != nil {
			return err
		}
		services := service("udp", w.addr, discardPort, f.keys, realserver(f.sink, 0))
		if w.tcp = f.tcp; w.tcp {
			services += tcpServices(w.addr, f, b.web)
		}
		return b.startDirector(ctx, w, queues, programs(b), services)
	}
}

// tcpServices returns the services of TCP at an address. web has their servers.
func tcpServices(vip netip.Addr, f forwarding, web *lab.Host) string {
	services := service("tcp", vip, discardPort, f.keys, realserver(f.sink, 0))
	for _, port := range []int{iperfPort, echoPort, httpPort} {
		services += service("tcp", vip, port, f.keys, realserver(web.Addr, 0))
	}
	return services
}

// withoutKeep opens a path whose director has its connection table in private memory.
func withoutKeep(open func(*bed, context.Context, *path) error) func(*bed, context.Context, *path) error {
	return func(b *bed, ctx context.Context, w *path) error {
		w.private = true
		return open(b, ctx, w)
	}
}

// startDirector starts a path's director with these services.
func (b *bed) startDirector(ctx context.Context, w *path, queues int, programs, services string) error {
	name := strings.NewReplacer(" ", "-", ",", "").Replace(w.name)
	w.socket = filepath.Join(b.dir, name+".sock")
	if b.kernel {
		w.room = kernelRoom
	}
	config := fmt.Sprintf("tun = %q\nqueues = %d\ncontrol = %q\n", fmt.Sprintf("vs-%d", w.addr.As4()[3]), queues,
		w.socket)
	b.tables = append(b.tables, keep.Path(w.socket, ".table"))
	if w.table != 0 {
		config += fmt.Sprintf("table = %d\n", w.table)
	}
	config += w.connections()
	cmd, err := b.director(ctx, w, programs, name, config+services)
	if err != nil {
		return err
	}
	if queues == onePinned {
		w.process, err = b.lab.Director.StartOn(b.machine.DirectorCPU, cmd)
	} else {
		w.process, err = b.lab.Director.Start(cmd)
	}
	if err != nil {
		return err
	}
	return await(ctx, w.process, "answers on "+w.socket, answers(ctx, w.socket))
}

// connections returns the section of the connection table, in TOML.
func (w *path) connections() string {
	config := "[connections]\n"
	if w.private {
		config += "keep = \"\"\n"
	}
	if w.room != 0 {
		config += fmt.Sprintf("max = %d\n", w.room)
	}
	return config
}

// director writes the configuration of a path's director, and returns the command that runs it. Another version may not
// know the key that switches the fast path off: it has none then.
func (b *bed) director(ctx context.Context, w *path, programs, name, config string) (*exec.Cmd, error) {
	if w.fast {
		return b.command(programs, "director", name, "[director]\n"+config)
	}
	cmd, err := b.command(programs, "director", name, "[director]\n"+noFastPath+config)
	if err != nil || programs != b.against {
		return cmd, err
	}
	check := exec.CommandContext(ctx, cmd.Path, "check", "-c", cmd.Args[len(cmd.Args)-1])
	if _, err := b.lab.Director.Run(check); err == nil || ctx.Err() != nil {
		return cmd, ctx.Err()
	}
	return b.command(programs, "director", name, "[director]\n"+config)
}

// noFastPath is the key of either program that switches the fast path off, in TOML.
const noFastPath = "fast_path = \"off\"\n"

// service returns a service in TOML. keys say how it forwards.
func service(protocol string, vip netip.Addr, port int, keys, realserver string) string {
	return fmt.Sprintf("\n[[service]]\nname = \"%s%d-%d\"\nvip = %q\nprotocol = %q\nport = %d\nscheduler = "+
		"\"rr\"\n%s\n%s", protocol, port, vip.As4()[3], vip, protocol, port, keys, realserver)
}

// realserver returns a service's realserver in TOML. port is its own one, of VS/NAT; 0: the service's.
func realserver(addr netip.Addr, port int) string {
	text := fmt.Sprintf("  [[service.realserver]]\n  address = %q\n", addr)
	if port != 0 {
		text += fmt.Sprintf("  port = %d\n", port)
	}
	return text
}

// tunnels is the key of an agent that takes the tunnels of tcpServices, in TOML.
const tunnels = `encap = ["ipip", "gue"]`

// startAgent starts the realserver of a host, which has the addresses of the TCP services of these paths. keys are its
// further keys, in TOML.
func (b *bed) startAgent(ctx context.Context, web *lab.Host, paths []*path, keys string) error {
	return b.startAgentOf(ctx, web, paths, []netip.Addr{b.lab.Director.Addr}, keys)
}

// startAgentOf is startAgent for an agent of these directors. keys may have further tables, too.
func (b *bed) startAgentOf(ctx context.Context, web *lab.Host, paths []*path, directors []netip.Addr,
	keys string) error {
	var vips, from []string
	for _, w := range paths {
		if w.tcp {
			vips = append(vips, fmt.Sprintf("%q", w.addr))
		}
	}
	for _, d := range directors {
		from = append(from, fmt.Sprintf("%q", d))
	}
	socket := b.agentSocket(web)
	cmd, err := b.command(b.bin, "realserver", web.Name, fmt.Sprintf("[realserver]\nvips = [%s]\ndirectors = [%s]\n"+
		"control = %q\n%s\n", strings.Join(vips, ", "), strings.Join(from, ", "), socket, keys))
	if err != nil {
		return err
	}
	if b.agent, err = web.Start(cmd); err != nil {
		return err
	}
	return await(ctx, b.agent, "answers on "+socket, answers(ctx, socket))
}

// agentSocket returns the control socket of a host's agent.
func (b *bed) agentSocket(web *lab.Host) string { return filepath.Join(b.dir, web.Name+".sock") }

// command writes a program's configuration and returns the command that runs it.
func (b *bed) command(programs, program, name, config string) (*exec.Cmd, error) {
	file := filepath.Join(b.dir, name+".toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", name, err)
	}
	return exec.Command(filepath.Join(programs, program), "run", "-c", file), nil
}

// answers returns a function that reports whether a program answers on its control socket.
func answers(ctx context.Context, socket string) func() bool {
	return func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		var ignored struct{}
		return api.Get(ctx, socket, "/status", &ignored) == nil
	}
}

const (
	upTimeout = 30 * time.Second // for a program to be up, on a busy machine or in a guest
	pollEvery = 10 * time.Millisecond
)

// await waits until a program is up. If the program ends instead, or the time is over, the error has its output.
func await(ctx context.Context, p *lab.Process, what string, up func() bool) error {
	deadline, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !up() {
		select {
		case <-tick.C:
		case <-p.Done():
			return fmt.Errorf("the program ended before it %s: %w: %s", what, p.Wait(), strings.TrimSpace(p.Output()))
		case <-deadline.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("not so after %v that the program %s: %s", upTimeout, what, strings.TrimSpace(p.Output()))
		}
	}
	return nil
}

// close ends everything.
func (b *bed) close() error {
	err := b.lab.Close()
	for _, in := range b.labs {
		err = errors.Join(err, in.close())
	}
	for _, path := range b.tables {
		err = errors.Join(err, keep.Remove(path))
	}
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return err
}
