package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// importedConf is a keepalived.conf as LVS directors with TUN have it: mail, VRRP with a password, synchronisation, a
// VIP in no subnet of theirs, and checks at another port than the service's.
const importedConf = `! One of two directors.
global_defs {
    notification_email {
        ops@example.com
    }
    notification_email_from lb@example.com
    smtp_server %[1]s
    smtp_connect_timeout 20
    router_id LVS_MAIL
    smtp_alert_vrrp
    lvs_sync_daemon eth0 VI_1
}

vrrp_instance VI_1 {
    state %[2]s
    interface eth0
    virtual_router_id 51
    priority %[3]d
    advert_int 1
    authentication {
        auth_type PASS
        auth_pass 1111
    }
    virtual_ipaddress {
        9.9.9.9
    }
}

virtual_server 9.9.9.9 205 {
    delay_loop 3
    lb_algo wrr
    lvs_method TUN
    protocol TCP

    real_server %[4]s 205 {
        weight 10
        TCP_CHECK {
            connect_port 25
            connect_timeout 3
        }
    }

    real_server %[5]s 205 {
        weight 10
        TCP_CHECK {
            connect_port 25
            connect_timeout 3
        }
    }
}
`

// importedPair is a pair of directors whose configurations are imports.
type importedPair struct {
	*pair
	mails *testkit.SMTPServer
}

// newImportedPair imports a file for each director, and starts the realservers.
func newImportedPair(t *testing.T) *importedPair {
	t.Helper()
	p := &importedPair{pair: newPairHosts(t, false, 2)}
	p.VIP = netip.MustParseAddr("9.9.9.9")
	p.vips = []netip.Addr{p.VIP}
	p.command(p.Router, fmt.Sprintf("route replace %s dev lan\n", p.VIP), "ip", "-batch", "-")
	p.mails, _ = p.serveSMTP(p.Client, netip.AddrPortFrom(p.Client.Addr, 25).String(), testkit.SMTPOptions{TLS: "none"})
	for _, of := range []struct {
		director *program
		state    string
		priority int
	}{{p.first, "MASTER", 150}, {p.second, "BACKUP", 100}} {
		conf := fmt.Sprintf(importedConf, p.Client.Addr, of.state, of.priority, p.Webs[0].Addr, p.Webs[1].Addr)
		code, toml, notes := imports(t, []byte(conf), "keepalived", "-")
		if code != 0 || notes != "stdin:2: global_defs: router_id: no counterpart, and none needed\n" {
			t.Fatalf("import: exit status %d: %s", code, notes)
		}
		p.director = of.director
		of.director.configure(p.fileWith(toml))
		check := run(t, of.director.host, exec.Command(programPath("director"), "check", "-c", of.director.config))
		if check.code != 0 {
			t.Fatalf("director check: exit status %d\n%s%s", check.code, check.stdout, check.stderr)
		}
		of.director.configure(p.fileWith(strings.Replace(toml, "[notify.mail]\n", "[notify.mail]\ngather = \"1s\"\n",
			1)))
	}
	p.startAgents("")
	for _, web := range p.Webs {
		p.namedEcho(web, 205)
	}
	return p
}

// checked lets a realserver's check succeed until the end of the listener.
func (p *importedPair) checked(n int) net.Listener {
	p.t.Helper()
	ln, err := p.Webs[n].Listen("tcp", netip.AddrPortFrom(p.Webs[n].Addr, 25).String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// awaitServers waits until requests to the VIP are answered by these realservers alone, in turn.
func (p *importedPair) awaitServers(when string, names ...string) {
	p.t.Helper()
	begin := time.Now()
	var seen []string
	testkit.Within(p.t, fmt.Sprintf("%s %q serve", when, names), 2*soon, func() bool {
		seen = nil
		for range 4 {
			name, err := p.asked()
			if err != nil {
				return false
			}
			seen = append(seen, name)
		}
		slices.Sort(seen)
		return slices.Equal(slices.Compact(seen), names)
	})
	p.t.Logf("%s %q serve after %v", when, names, time.Since(begin).Round(10*time.Millisecond))
}

// asked sends one request to the VIP, on a new connection, and returns the server's name.
func (p *importedPair) asked() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := p.Client.DialContext(ctx, "tcp", p.at(205))
	if err != nil {
		return "", err
	}
	defer c.Close()
	return askName(c, "hello")
}

// mailed waits for a mail with these words.
func (p *importedPair) mailed(words string) {
	p.t.Helper()
	testkit.Within(p.t, "a mail says "+words, 12*soon, func() bool {
		return slices.ContainsFunc(p.mails.Mails(), func(m testkit.SMTPMail) bool {
			return m.From == "lb@example.com" && strings.Contains(m.Text(p.t), words)
		})
	})
}

// TestImportedPair: two directors run what they import of keepalived's files. The master alone answers for the VIP, a
// realserver whose check fails gets no more connections, mails name it and the roles, and the backup takes over, with
// the connections that there are.
func TestImportedPair(t *testing.T) {
	t.Parallel()
	p := newImportedPair(t)
	first := p.checked(0)
	p.checked(1)
	p.first.start()
	p.second.start()
	p.role(p.first, "master")
	p.role(p.second, "backup")
	p.holder(p.first, p.VIP)
	p.awaitServers("at first", "web1", "web2")
	p.mailed("is master, was backup")

	first.Close()
	p.awaitServers("after a failed check", "web2")
	p.mailed("realserver " + p.Webs[0].Addr.String() + " is down, was up: connection refused")

	long, _ := p.whoAnswers(anyPort(p.Client.Addr), p.at(205))
	testkit.Within(t, "the backup knows the connection", soon, func() bool {
		return slices.ContainsFunc(p.second.rows(), func(row string) bool {
			return strings.Contains(row, fmt.Sprint(" ", long.LocalAddr().(*net.TCPAddr).Port, " "))
		})
	})
	p.first.kill()
	p.awaitServers("after a kill of the master", "web2")
	p.role(p.second, "master")
	p.holder(p.second, p.VIP)
	if got := mustAnswer(t, long); got != "web2" {
		t.Errorf("the connection is answered by %s", got)
	}
	p.first.start()
	p.role(p.first, "master")
	p.role(p.second, "backup")
	p.holder(p.first, p.VIP)
	if got := mustAnswer(t, long); got != "web2" {
		t.Errorf("after the return the connection is answered by %s", got)
	}

	p.checked(0)
	p.awaitServers("after the check succeeds again", "web1", "web2")
	p.first.stop()
	p.awaitServers("after a stop of the master", "web1", "web2")
	p.role(p.second, "master")
	if v := p.second.balance().VRRP[0]; v.Conflicts != 0 || len(v.Refused) > 0 || v.Version != 2 || v.Interval != 1 {
		t.Errorf("%+v", v)
	}
}

// TestImportBesideKeepalived: a director runs the import of a file, and keepalived the file itself. They stand in for
// each other: neither refuses the other's advertisements, and all addresses move, those that are not advertised too.
func TestImportBesideKeepalived(t *testing.T) {
	t.Parallel()
	needTool(t, "keepalived", "keepalived")
	const usual = "authentication {\nauth_type PASS\nauth_pass secret123\n}\n"
	for name, c := range map[string]struct{ global, instance string }{
		"multicast": {"", usual + "virtual_ipaddress_excluded {\nHOP/24\n}\n"},
		"unicast": {"", usual + "unicast_src_ip OWN\nunicast_peer {\nOTHER\n}\nvirtual_ipaddress_excluded " +
			"{\nHOP/24\n}\n"},
		"version 3": {"vrrp_version 3\n", usual + "advert_int 0.254\nvirtual_ipaddress_excluded {\nHOP/24\n}\n"},
		"strict":    {"vrrp_strict\n", usual + "virtual_ipaddress_excluded {\nHOP/24\n}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, false)
			hop := beside(p.VIP)
			conf := func(own, other netip.Addr, priority int) string {
				return "global_defs {\n" + c.global + "}\n" + fmt.Sprintf("vrrp_instance VI_1 {\ninterface eth0\n"+
					"virtual_router_id 51\npriority %d\n%svirtual_ipaddress {\n%v\n}\n}\nvirtual_server %v 80 "+
					"{\nprotocol "+
					"TCP\nlvs_method TUN\nreal_server %v 80 {\n}\n}\n", priority, strings.NewReplacer("HOP",
					hop.String(), "OWN",
					own.String(), "OTHER", other.String()).Replace(c.instance), p.VIP, p.VIP, p.Webs[0].Addr)
			}
			first, second := p.first.host.Addr, p.second.host.Addr
			code, toml, notes := imports(t, []byte(conf(first, second, 150)), "keepalived", "-")
			if code != 0 {
				t.Fatalf("import: exit status %d: %s", code, notes)
			}
			p.first.configure(p.fileWith(toml))
			p.startKeepalived(conf(second, first, 100))
			holds := func(of *program) {
				p.holder(of, p.VIP)
				p.holder(of, hop)
			}
			holds(p.second)
			p.first.start()
			p.role(p.first, "master")
			holds(p.first)
			p.mustServe(p.Client)
			p.first.kill()
			p.holder(p.second, p.VIP) // the first one's host has the other address until its next start
			p.first.start()
			p.role(p.first, "master")
			holds(p.first)
			p.first.stop()
			holds(p.second)
			p.first.start()
			p.role(p.first, "master")
			holds(p.first)
			p.mustServe(p.Client)
			v := p.first.balance().VRRP[0]
			if v.Conflicts > 0 || len(v.Refused) > 0 || slices.ContainsFunc(v.Peers,
				func(p api.Peer) bool { return p.Differs }) {
				t.Errorf("%+v", v)
			}
		})
	}
}
