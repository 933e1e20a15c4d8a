package director

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
)

// checked is the configuration that has every type of check.
func checked(t *testing.T) *config.Director {
	t.Helper()
	text, err := os.ReadFile("../config/testdata/checks.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.ParseDirector("checks.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestChangeOfCertificates: new contents of a file of authorities are a change, even if its name is the same.
func TestChangeOfCertificates(t *testing.T) {
	was, is := checked(t), checked(t)
	was.Services[0].Check.CAFile, was.Services[0].Check.CA = "/ca.pem", "some"
	is.Services[0].Check.CAFile, is.Services[0].Check.CA = "/ca.pem", "others"
	if diff := cmp.Diff([]string{`service "web": check: ca /ca.pem -> /ca.pem with other certificates`},
		texts(changes(was, is))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestChangesOfMail: each key of mail has its line. A password is never shown.
func TestChangesOfMail(t *testing.T) {
	was, is := checked(t), checked(t)
	was.Notify.Mail = &config.Mail{To: []string{"a@b"}, From: "a@b", Server: "c:25", TLS: "none",
		CAFile: "/ca", CA: "1", PasswordFile: "/p", Password: "secret", Gather: time.Second}
	is.Notify.Mail = &config.Mail{To: []string{"a@b", "c@d"}, From: "d@b", Server: "c:465", TLS: "tls", CAFile: "/ca",
		CA: "2", User: "lb", PasswordFile: "/p", Password: "other", Helo: "lb1", Kinds: []string{"service"},
		Services: []string{"web"}, Gather: time.Minute}
	want := []string{`notify: mail: to a@b -> a@b,c@d`, `notify: mail: from a@b -> d@b`,
		`notify: mail: server c:25 -> c:465`, `notify: mail: tls none -> tls`,
		`notify: mail: ca /ca -> /ca with other certificates`, `notify: mail: user none -> lb`,
		`notify: mail: password_file /p -> /p with another password`, `notify: mail: helo none -> lb1`,
		`notify: mail: kinds all -> service`, `notify: mail: services all -> web`, `notify: mail: gather 1s -> 1m0s`}
	if diff := cmp.Diff(want, texts(changes(was, is))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	is.Notify.Mail = nil
	if diff := cmp.Diff([]string{`notify: mail removed`}, texts(changes(was, is))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestChangesOfHealth: each key that a reload changes has its line, once for all realservers that have their service's
// check.
func TestChangesOfHealth(t *testing.T) {
	web := func(d *config.Director) *config.Service { return &d.Services[0] }
	for _, c := range []struct {
		name   string
		change func(d *config.Director)
		want   []string
	}{
		{"nothing", func(*config.Director) {}, nil},
		{"service", func(d *config.Director) {
			s := web(d)
			s.Quorum, s.Hysteresis, s.DrainOnFailure, s.Sorry.Address = 3, 2, true, netip.MustParseAddr("10.0.99.2")
		}, []string{
			`service "web": quorum 1 -> 3`,
			`service "web": hysteresis 0 -> 2`,
			`service "web": sorry_server none -> 10.0.99.2`,
			`service "web": on_failure remove -> drain`,
		}},
		{"notify", func(d *config.Director) {
			d.Notify = config.Notify{Command: []string{"/usr/local/bin/tell", "a b"},
				Webhook: "https://hooks.example.com/secret", Timeout: time.Second}
		}, []string{`notify: command none -> /usr/local/bin/tell "a b"`, `notify: webhook none -> ` +
			`https://hooks.example.com`, `notify: timeout 10s -> 1s`}},
		{"mail", func(d *config.Director) {
			d.Notify.Mail = &config.Mail{To: []string{"a@b", "c@d"}, Server: "e:25"}
		}, []string{`notify: mail added: to a@b,c@d by e:25`}},
		{"the service's check", func(d *config.Director) {
			*web(d).Check = config.Check{Type: "https", Port: 80, Interval: time.Second, Timeout: time.Second, Rise: 3,
				Fall: 1, Path: "/x", Host: "a", Verify: true,
				Status: []config.StatusRange{{First: 200, Last: 299}, {First: 404, Last: 404}}, Body: "b c", SNI: "s",
				CAFile: "/ca", CA: "1"}
		}, []string{
			`service "web": check: via direct -> tunnel`,
			`service "web": check: port 9443 -> 80`,
			`service "web": check: interval 10s -> 1s`,
			`service "web": check: timeout 3s -> 1s`,
			`service "web": check: rise 1 -> 3`,
			`service "web": check: fall 5 -> 1`,
			`service "web": check: initial up -> down`,
			`service "web": check: path /health?full=1 -> /x`,
			`service "web": check: host www.example.com -> a`,
			`service "web": check: status 200,300-399,418 -> 200-299,404`,
			`service "web": check: body "(?i)fine" -> "b c"`,
			`service "web": check: sni sni.example.com -> s`,
			`service "web": check: ca none -> /ca`,
			`service "web": check: verify false -> true`,
		}},
		{"check removed", func(d *config.Director) {
			web(d).Check = nil
			for i := range web(d).Realservers[:3] {
				web(d).Realservers[i].Check = nil
			}
		}, []string{
			`service "web": check removed`,
			`service "web": realserver 10.0.11.2: check removed`,
			`service "web": realserver 10.0.11.3: check removed`,
		}},
		{"a realserver's check", func(d *config.Director) {
			d.Services[3].Realservers[0].Check = &config.Check{Type: "ping", Direct: true}
		}, []string{`service "everything": realserver 10.0.11.1: check added: ping, via direct`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			was, is := checked(t), checked(t)
			c.change(is)
			if diff := cmp.Diff(c.want, texts(changes(was, is))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
