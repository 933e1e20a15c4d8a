package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/doctor"
	"vstun/cmd/internal/lab"
	"vstun/routing/neigh"
	"vstun/testdata/testkit"
)

// pair is two directors on the VIP's LAN; the second one is at a host that is a realserver's otherwise.
type pair struct {
	*site
	first, second *program
	interval      string // between advertisements
}

// newPair returns two directors with one instance, ready to be started, and a realserver.
func newPair(t *testing.T, ipv6 bool) *pair {
	t.Helper()
	p := newPairHosts(t, ipv6, 1)
	p.startAgents("")
	p.namedEchoAt(p.Webs[0], ":80")
	return p
}

// newPairHosts returns two directors, ready to be started, and the hosts of realservers.
func newPairHosts(t *testing.T, ipv6 bool, realservers int) *pair {
	t.Helper()
	needMachine(t)
	prefix := fmt.Sprintf("e2e%d-%s", os.Getpid(), strings.NewReplacer("Test", "", "/", "-").Replace(t.Name()))
	l, err := lab.New(lab.Spec{Prefix: prefix[:min(len(prefix), 40)], Webs: realservers + 1, Network: lab.LAN})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &pair{site: &site{Lab: l, t: t, dir: t.TempDir(), vips: []netip.Addr{l.VIP}}, interval: "100ms"}
	if ipv6 {
		p.Insider.Addr = p.Insider.Addr6
	}
	p.speak(ipv6)
	backup := p.Webs[realservers]
	p.sources = []netip.Addr{p.Director.Addr, backup.Addr}
	p.Webs = p.Webs[:realservers]
	p.first, p.second = p.prepare(p.Director, "director"), p.prepare(backup, "director")
	p.director = p.first
	return p
}

// configurePair writes the configuration of a director with a priority.
func (p *pair) configurePair(of *program, priority int, more string) {
	p.t.Helper()
	p.director = of
	of.configure(p.lanTOML("", p.VIP) + fmt.Sprintf("[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nrouter_id = 51\n"+
		"interval = %q\npriority = %d\n%s\n", p.interval, priority, more))
	p.director = p.first
}

func (p *pair) addresses(more ...string) string {
	return fmt.Sprintf("addresses = [%s]\n", `"`+strings.Join(append([]string{p.VIP.String()}, more...), `", "`)+`"`)
}

// role waits until a director has a role in every instance.
func (p *pair) role(of *program, want string) {
	p.t.Helper()
	testkit.Eventually(p.t, of.String()+" is "+want, func() bool {
		st := of.balance()
		for _, v := range st.VRRP {
			if v.Role != want {
				return false
			}
		}
		return len(st.VRRP) > 0 && (want == "master") == (len(st.Announced) > 0)
	})
}

// holder waits until a director alone answers for an address.
func (p *pair) holder(of *program, a netip.Addr) {
	p.t.Helper()
	mac := neigh.MAC(p.mac(of.host, "eth0"))
	testkit.Eventually(p.t, of.String()+" answers for "+a.String(), func() bool {
		owners := p.owners(p.Insider, a)
		return len(owners) == 1 && owners[0].MAC == mac
	})
}

// TestVRRP: the master alone answers for the VIP. Another one takes over after a kill, at once after a stop and after
// standby, and requests of clients whose neighbours' tables have the former master reach it. Owned addresses move, too.
func TestVRRP(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		p := newPair(t, ipv6)
		hop := beside(p.VIP) // of realservers, for example
		p.configurePair(p.first, 150, p.addresses(hop.String()))
		p.configurePair(p.second, 100, p.addresses(hop.String()))
		p.first.start()
		p.second.start()
		p.role(p.first, "master")
		p.role(p.second, "backup")
		p.holder(p.first, p.VIP)
		p.holder(p.first, hop)
		p.mustServe(p.Insider)
		p.mustServe(p.Client)
		for _, d := range []*program{p.first, p.second} {
			p.director = d
			testkit.Eventually(t, "explain says that a backup of the VIP has another master", func() bool {
				e := p.explain(netip.AddrPortFrom(p.Client.Addr, 1).String(), p.at(80))
				return (d == p.first) == (e.Role == "") && e.Realserver != ""
			})
		}
		p.director = p.first

		begin := time.Now()
		p.first.kill()
		p.waitServed(begin, "a kill")
		p.role(p.second, "master")
		p.mustServe(p.Client)
		p.first.start()
		p.role(p.second, "backup")
		p.role(p.first, "master")
		p.holder(p.first, p.VIP)
		p.holder(p.first, hop)

		p.director = p.first
		if r := p.ask("standby"); r.code != 0 || !strings.Contains(r.stdout, "backup") {
			t.Errorf("standby: %+v", r)
		}
		p.role(p.second, "master")
		p.role(p.first, "backup")
		p.holder(p.second, p.VIP)
		p.holder(p.second, hop)
		p.mustServe(p.Insider)
		if r := p.ask("active"); r.code != 0 {
			t.Errorf("active: %+v", r)
		}
		p.role(p.first, "master")
		p.role(p.second, "backup")
		p.holder(p.first, hop)
		testkit.Eventually(t, "peers names the role", func() bool { // a master that load pauses loses its role
			text := p.ask("peers").stdout
			return strings.Contains(text, "VI_1") && strings.Contains(text, "master")
		})
		p.mustServe(p.Insider)

		begin = time.Now()
		p.first.stop()
		p.waitServed(begin, "a stop")
		p.holder(p.second, hop)
		if v := p.second.balance().VRRP[0]; v.Conflicts != 0 || len(v.Refused) > 0 || v.Failed > 0 {
			t.Errorf("%+v", v)
		}
		if n := p.second.balance().Neighbours; n.Failed > 0 || n.Conflicts > 0 {
			t.Errorf("changes of the master are conflicts, or cannot be announced: %+v", n)
		}
		p.mustHaveNoTrace()
	})
}

// TestVRRPWithBGP: with the manual's configuration the master alone announces the VIP to routers, also one that is
// master during its standby, and a planned switch leaves the router a next hop at all times. The doctor of a backup
// finds no fault in that.
func TestVRRPWithBGP(t *testing.T) {
	t.Parallel()
	p := &pair{site: newLANFor(t, dr)}
	p.startAgents("")
	for _, web := range p.Webs {
		p.namedEchoAt(web, ":80")
	}
	p.bird(p.Director, p.Backup)
	p.first, p.second = p.prepare(p.Director, "director"), p.prepare(p.Backup, "director")
	for i, d := range []*program{p.first, p.second} {
		p.director = d
		own := strings.NewReplacer("= 150", fmt.Sprintf("= %d", 150-50*i), `"10.0.2.2"`, `"`+d.host.Addr.String()+`"`)
		d.configure(own.Replace(p.fileWith(manualBlock(t, "bgp.md", "The file of lb1"))))
	}
	p.director = p.first
	begin := func(d *program) {
		t.Helper()
		d.start()
		testkit.Eventually(t, "a session", func() bool { return sessionOf(t, d).State == "established" })
	}
	begin(p.first)
	p.role(p.first, "master")
	begin(p.second)
	p.role(p.second, "backup")
	p.awaitHops(p.VIP, p.first.host)
	if b := p.second.balance().BGP; !slices.Equal(b.Elsewhere, []string{p.VIP.String()}) {
		t.Errorf("on the backup: %+v", b)
	}
	if text := p.ask("peers").stdout; strings.Contains(text, "another master") {
		t.Errorf("on the master:\n%s", text)
	}
	p.director = p.second
	if text := p.ask("peers").stdout; !strings.Contains(text, p.VIP.String()+" (another master)") {
		t.Errorf("on the backup:\n%s", text)
	}
	for _, f := range p.second.examine().Findings {
		if f.Where == "BGP" {
			t.Errorf("the doctor of a backup finds %+v", f)
		}
	}
	p.director = p.first

	gaps := p.watchHops(p.VIP)
	becomes := func(command string, master *program) {
		t.Helper()
		if r := p.ask(command); r.code != 0 {
			t.Errorf("%s: %+v", command, r)
		}
		p.role(master, "master")
		p.awaitHops(p.VIP, master.host)
	}
	becomes("standby", p.second)
	becomes("active", p.first)
	p.first.stop()
	p.role(p.second, "master")
	p.awaitHops(p.VIP, p.second.host)
	begin(p.first)
	becomes("active", p.first)
	becomes("standby", p.second)
	if n := gaps(); n > 0 {
		t.Errorf("planned switches have left the router without a next hop %d times", n)
	}
	p.second.kill()
	p.role(p.first, "master")
	p.awaitHops(p.VIP, p.first.host)
	p.mustBeServedBy(80, "")
}

// watchHops watches the router's next hops to a VIP until its result is called, which returns how often there was none.
func (s *site) watchHops(vip netip.Addr) (gaps func() int) {
	s.t.Helper()
	end, ended, n, had := make(chan struct{}), make(chan struct{}), 0, true
	go func() {
		defer close(ended)
		for ; ; time.Sleep(tick) {
			select {
			case <-end:
				return
			default:
			}
			has := len(s.nextHops(vip)) > 0
			if !has && had {
				n++
			}
			had = has
		}
	}()
	stop := sync.OnceFunc(func() {
		close(end)
		<-ended
	})
	s.t.Cleanup(stop)
	return func() int {
		stop()
		return n
	}
}

// waitServed waits until a client's new connection is answered.
func (p *pair) waitServed(begin time.Time, after string) {
	p.t.Helper()
	testkit.Eventually(p.t, "a request is answered after "+after, func() bool {
		c, err := p.Client.Dial("tcp", p.at(80))
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		name, err := askName(c, "hello")
		return err == nil && name == "web1"
	})
	p.t.Logf("after %s the next request was answered within %v", after, time.Since(begin).Round(time.Millisecond))
}

// TestVRRPTracking: a service without quorum, a gateway that is silent, and an interface without a link change the
// priority or are a fault.
func TestVRRPTracking(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.configurePair(p.second, 100, p.addresses())
	p.second.start()
	const noDevice = `vrrp \"VI_1\": track[1]: interface: there is no device lan9, and without it `
	warned := func(text string) {
		t.Helper()
		testkit.Eventually(t, "the log has: "+text, func() bool { return strings.Contains(p.first.Output(), text) })
	}
	for _, c := range []struct {
		track, role string
		priority    uint8
		warning     string
	}{
		{`{ interface = "eth0", weight = 10 }`, "master", 160, ""},
		{`{ interface = "lan9", weight = -20 }`, "master", 130, noDevice + "the priority is lower by 20: want eth0"},
		{`{ interface = "lan9", weight = -90 }`, "backup", 60, noDevice + "the priority is lower by 90: want eth0"},
		{`{ interface = "lan9" }`, "fault", 150, noDevice + "the instance has a fault: want eth0"},
		{`{ service = "web" }`, "master", 150, ""},
		{fmt.Sprintf(`{ gateway = "%v" }`, p.Insider.Addr), "master", 150, ""},
		{`{ gateway = "10.0.2.199" }`, "fault", 150, ""},
	} {
		p.configurePair(p.first, 150, p.addresses()+"track = ["+c.track+"]\n")
		p.first.start()
		warned(c.warning)
		testkit.Eventually(t, c.track+" is "+c.role, func() bool {
			v := p.first.balance().VRRP[0]
			return v.Role == c.role && v.Priority == c.priority
		})
		// Load may pause the other one, whose role it then takes. It takes none from a master that it hears.
		if c.role == "fault" && strings.Contains(p.first.Output(), "has a lower priority") {
			t.Errorf("%s: it has taken the role from the other one", c.track)
		}
		p.first.stop()
	}

	p.configurePair(p.first, 150, p.addresses())
	p.first.start()
	p.role(p.first, "master")
	for _, track := range []string{fmt.Sprintf(`{ gateway = "%v" }`, p.Insider.Addr), `{ service = "web" }`} {
		p.configurePair(p.first, 150, p.addresses()+"track = ["+track+"]\n")
		p.mustReload()
		testkit.Eventually(t, track+" is up", func() bool {
			v := p.first.balance().VRRP[0]
			return len(v.Tracks) == 1 && strings.Contains(track, strings.Fields(v.Tracks[0].Name)[1])
		})
	}
	p.configurePair(p.first, 150, p.addresses()+"track = [{ interface = \"lan9\", weight = 7 }]\n")
	p.mustReload()
	warned(noDevice + "the priority is not raised by 7: want eth0")
	// Load may pause it, which ends its role; it takes the role again.
	testkit.Eventually(t, "reloads with a track do not switch roles", func() bool {
		v := p.first.balance().VRRP[0]
		pauses := strings.Count(p.first.Output(), `new=backup reason="paused for`)
		return v.Role == "master" && int(v.Elected) == 1+pauses
	})
}

// TestVRRPLink: a cable that is pulled is a fault until it is in again, at the master and at the backup. A tracked
// interface that comes after the start ends its fault.
func TestVRRPLink(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.interval = "300ms" // a busy machine may send an advert late
	plug := func(of *program, in bool) {
		t.Helper()
		if err := p.Plug(of.host, in); err != nil {
			t.Fatal(err)
		}
	}
	p.configurePair(p.first, 150, p.addresses(beside(p.VIP).String()))
	p.configurePair(p.second, 100, p.addresses(beside(p.VIP).String())+"track = [{ interface = \"lan9\" }]\n")
	plug(p.first, false)
	p.first.start()
	p.second.start()
	p.role(p.first, "fault")
	p.role(p.second, "fault")
	p.command(p.second.host, "", "ip", "link", "add", "lan9", "type", "veth", "peer", "lan8")
	p.command(p.second.host, "", "ip", "link", "set", "lan8", "up")
	p.command(p.second.host, "", "ip", "link", "set", "lan9", "up")
	p.role(p.second, "master")
	plug(p.first, true)
	for _, d := range []struct {
		cut, other       *program
		without, healthy string // roles of other
	}{{p.first, p.second, "master", "backup"}, {p.second, p.first, "master", "master"}} {
		p.role(d.other, d.healthy)
		elected := d.cut.balance().VRRP[0].Elected
		plug(d.cut, false)
		p.role(d.cut, "fault")
		p.role(d.other, d.without)
		sent := d.other.balance().VRRP[0].Sent
		testkit.Eventually(t, "a second passes", func() bool { return d.other.balance().VRRP[0].Sent > sent+3 })
		p.role(d.cut, "fault")
		plug(d.cut, true)
		p.role(d.other, d.healthy)
		if v := d.cut.balance().VRRP[0]; d.cut == p.second && v.Elected != elected || v.Conflicts != 0 {
			t.Errorf("%s: %+v", d.cut, v)
		}
		p.holder(p.first, p.VIP)
		p.holder(p.first, beside(p.VIP))
		p.mustServe(p.Client)
	}
}

// TestVRRPAddressRefused: neighbours learn of the VIPs of a master that cannot have another address, and the address
// comes once the host can have it.
func TestVRRPAddressRefused(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	p := newPair(t, true)
	at := p.first.host
	p.command(at, "", "ip", "link", "add", "lan9", "type", "veth", "peer", "lan8")
	p.command(at, "", "ip", "link", "set", "lan9", "up")
	const key = "net.ipv6.conf.lan9.disable_ipv6"
	if err := at.Sysctl(key, "1"); err != nil {
		t.Fatal(err)
	}
	p.configurePair(p.first, 150, p.addresses("fd00:9::10/64 dev lan9"))
	p.first.start()
	p.role(p.first, "master")
	p.holder(p.first, p.VIP)
	p.mustServe(p.Client)
	testkit.Eventually(t, "the log has the refused address", func() bool {
		return strings.Contains(p.first.Output(), "without the addresses of [[vrrp]] that are no VIPs")
	})
	if err := at.Sysctl(key, "0"); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the master has the address", 3*soon, func() bool {
		shown := run(t, at, exec.Command("ip", "-6", "addr", "show", "dev", "lan9")).stdout
		return strings.Contains(shown, "fd00:9::10")
	})
}

// TestVRRPReload: reloads switch no role and break nothing; new VIPs of a master are announced.
func TestVRRPReload(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.configurePair(p.first, 150, p.addresses())
	p.configurePair(p.second, 100, p.addresses())
	p.first.start()
	p.second.start()
	p.role(p.first, "master")
	p.role(p.second, "backup")
	for n := range 30 {
		p.configurePair(p.first, 150+n%2, p.addresses())
		p.first.mustReloadBySignal()
	}
	for _, d := range []*program{p.first, p.second} {
		v := d.balance().VRRP[0]
		if v.Elected > 1+v.Paused || v.Conflicts > v.Paused { // a busy machine may have paused it
			t.Errorf("%s: %+v", d, v)
		}
	}
	p.role(p.first, "master")
	p.mustServe(p.Client)
}

// TestVRRPConflict: two masters are named by status, doctor, metrics and log.
func TestVRRPConflict(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.interval = "1s"
	secret := func(word string) string {
		return p.addresses() + fmt.Sprintf("version = 2\npassword = %q\n", word)
	}
	for n, d := range []*program{p.first, p.second} {
		p.configurePair(d, 100+n, secret(fmt.Sprint("word", n)))
		d.start()
	}
	for _, d := range []*program{p.first, p.second} {
		testkit.Eventually(t, "two masters are found", func() bool {
			v := d.balance().VRRP[0]
			return v.OtherMaster != nil && v.OtherMaster.Refused == "password" && v.Refused["password"] > 0
		})
	}
	p.director = p.first
	if text := p.ask("status").stdout; !strings.Contains(text, "is master, too") {
		t.Errorf("status:\n%s", text)
	}
	if !strings.Contains(p.first.Output(), "two directors are master") {
		t.Errorf("log:\n%s", p.first.Output())
	}
	found := p.first.examine().Findings
	if !slices.ContainsFunc(found, func(f doctor.Finding) bool {
		return strings.Contains(f.What, "is master, too") &&
			slices.Contains(f.Remarks, "set the same password at both")
	}) {
		t.Errorf("doctor: %+v", found)
	}
	if text := p.ask("peers").stdout; !strings.Contains(text, "REFUSED: password: set the same password at both") {
		t.Errorf("peers:\n%s", text)
	}
	p.second.stop()
	testkit.Eventually(t, "one master", func() bool { return p.first.balance().VRRP[0].OtherMaster == nil })
}

// TestVRRPDeaf: two masters that hear nothing of each other say so, and the doctor of each finds the other one.
func TestVRRPDeaf(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	absent := beside(p.VIP) // no host has it
	all := []*program{p.first, p.second}
	for n, d := range all {
		p.configurePair(d, 100+n, p.addresses()+fmt.Sprintf("peers = [%q]\n", absent))
		d.start()
	}
	for _, d := range all {
		p.role(d, "master")
		if p.director = d; !strings.Contains(p.ask("peers").stdout, "no peer has been heard") {
			t.Errorf("%s does not say that it hears no peer:\n%s", d, p.ask("peers").stdout)
		}
		testkit.Eventually(t, "the doctor finds another master", func() bool {
			return slices.ContainsFunc(d.examine().Findings, func(f doctor.Finding) bool {
				return f.Check == "neighbours" && strings.Contains(f.What, "answers ARP for it") &&
					strings.Contains(strings.Join(f.Causes, " "), "another director is master, too")
			})
		})
	}
}

// TestVRRPUnlisted: with [[vrrp]] every VIP in a subnet of the host belongs to an instance.
func TestVRRPUnlisted(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	other := beside(p.VIP)
	p.configurePair(p.first, 100, fmt.Sprintf("addresses = [%q]\n", other))
	r := run(t, p.first.host, exec.Command(programPath("director"), "check", "-c", p.first.config))
	want := fmt.Sprintf("VIP %v is in a subnet of eth0, and no [[vrrp]] has it", p.VIP)
	if r.code == 0 || !strings.Contains(r.stderr, want) {
		t.Errorf("check: %+v", r)
	}
}

// TestVRRPKeepalived: a director and keepalived stand in for each other.
func TestVRRPKeepalived(t *testing.T) {
	t.Parallel()
	needTool(t, "keepalived", "keepalived")
	p := newPair(t, false)
	p.configurePair(p.first, 150, p.addresses())
	p.startKeepalived(fmt.Sprintf("vrrp_instance VI_1 {\nstate BACKUP\ninterface eth0\nversion 3\nvirtual_router_id "+
		"51\npriority 100\nadvert_int 0.1\nvirtual_ipaddress {\n%v/32\n}\n}\n", p.VIP))
	p.holder(p.second, p.VIP)
	p.first.start()
	p.role(p.first, "master")
	p.holder(p.first, p.VIP)
	p.mustServe(p.Client)
	p.first.kill()
	p.holder(p.second, p.VIP)
	p.first.start()
	p.role(p.first, "master")
	p.holder(p.first, p.VIP)
	p.mustServe(p.Client)
	if v := p.first.balance().VRRP[0]; v.Conflicts > 0 || len(v.Refused) > 0 {
		t.Errorf("%+v", v)
	}
}

// startKeepalived runs keepalived's VRRP with a configuration at the second host.
func (p *pair) startKeepalived(text string) {
	p.t.Helper()
	file := filepath.Join(p.dir, "keepalived.conf")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	keepalived, err := p.second.host.Start(exec.Command("keepalived", "-n", "-l", "-P", "-f", file, "-p",
		filepath.Join(p.dir, "k.pid"), "-r", filepath.Join(p.dir, "kv.pid")))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = keepalived.Stop() })
}

// TestVRRPPause: a master that was stopped by a signal for two seconds is a backup when it goes on, and makes no second
// master.
func TestVRRPPause(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.configurePair(p.first, 150, p.addresses()+"preempt = false\n")
	p.configurePair(p.second, 100, p.addresses())
	p.first.start()
	p.role(p.first, "master")
	p.second.start()
	p.role(p.second, "backup")
	p.first.signal(unix.SIGSTOP)
	p.role(p.second, "master")
	p.waitServed(time.Now(), "a pause")
	time.Sleep(time.Second) // of the pause
	p.first.signal(unix.SIGCONT)
	p.role(p.first, "backup")
	p.role(p.second, "master")
	p.holder(p.second, p.VIP)
	p.mustServe(p.Client)
	for _, d := range []*program{p.first, p.second} {
		if v := d.balance().VRRP[0]; v.Conflicts > 0 || v.OtherMaster != nil {
			t.Errorf("%s: %+v", d, v)
		}
	}
	if v := p.first.balance().VRRP[0]; v.Paused == 0 {
		t.Errorf("no pause: %+v", v)
	}
}
