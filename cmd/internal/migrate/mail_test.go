package migrate_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/migrate"
)

// mailed is a keepalived.conf: lines of global_defs, and two virtual servers with lines of their own.
func mailed(global, first, second, realserver string) string {
	const format = "virtual_server 198.51.100.8%d 80 {\nprotocol TCP\n%s\nreal_server 10.0.11.2 80 {\n%s\n}\n" +
		"real_server 10.0.12.2 80 {\n}\n}\n"
	return "global_defs {\n" + global + "\n}\n" + fmt.Sprintf(format, 0, first, realserver) +
		fmt.Sprintf(format, 1, second, "")
}

// TestMail imports keepalived's mail. Which changes keepalived 2.2.7 mails about is in its check_data.c,
// validate_check_config.
func TestMail(t *testing.T) {
	const least = "notification_email {\nops@example.com\n}\nnotification_email_from lb@example.com\nsmtp_server " +
		"192.0.2.25\n"
	to := func(change func(m *config.Mail)) *config.Mail {
		m := &config.Mail{To: []string{"ops@example.com"}, From: "lb@example.com", Server: "192.0.2.25:25", TLS: "none",
			Gather: 5 * time.Second, Kinds: []string{"realserver"}}
		change(m)
		return m
	}
	both := func(m *config.Mail) { m.Kinds = nil }
	none := func(*config.Mail) {}
	for name, c := range map[string]struct {
		conf  string
		want  *config.Mail
		notes []string // beginnings
	}{
		"nothing":               {mailed("", "", "", ""), nil, nil},
		"default":               {mailed(least, "", "", ""), to(none), nil},
		"smtp_alert":            {mailed(least+"smtp_alert", "", "", ""), to(both), nil},
		"smtp_alert true":       {mailed(least+"smtp_alert true", "", "", ""), to(both), nil},
		"smtp_alert_checker on": {mailed(least+"smtp_alert off\nsmtp_alert_checker on", "", "", ""), to(both), nil},
		"smtp_alert off": {mailed(least+"smtp_alert off", "", "", ""), nil, []string{
			"2: mail: smtp_alert is off for every virtual_server, real_server and vrrp_instance"}},
		"smtp_alert_checker off": {mailed(least+"smtp_alert\nsmtp_alert_checker no", "", "", ""), nil, []string{
			"2: mail: smtp_alert is off for every virtual_server, real_server and vrrp_instance"}},
		"smtp_alert perhaps": {mailed(least+"smtp_alert perhaps", "", "", ""), to(none), []string{
			`7: smtp_alert "perhaps": keepalived leaves it out`}},
		"of one virtual_server": {mailed(least+"smtp_alert off", "smtp_alert", "", ""), to(func(m *config.Mail) {
			m.Kinds, m.Services = []string{"service"}, []string{"tcp-198.51.100.80-80"}
		}), nil},
		"of one virtual_server, too": {mailed(least, "smtp_alert", "", ""), to(both), []string{
			"18: smtp_alert: is off for the virtual_server, on for another one"}},
		"of one real_server": {mailed(least+"smtp_alert off", "", "", "smtp_alert on"), to(func(m *config.Mail) {
			m.Services = []string{"tcp-198.51.100.80-80"}
		}), []string{"9: smtp_alert: is off for 1 of 2 real_servers"}},
		"not of one real_server": {mailed(least, "", "", "smtp_alert off"), to(none), []string{
			"9: smtp_alert: is off for 1 of 2 real_servers"}},
		"all keys": {mailed("notification_email {\nops@example.com \"Night <night@example.com>\"\n"+
			"root@localhost # both\nops@example.com\n}\nnotification_email_from keepalived@lb1\n"+
			"smtp_server mail.example.com 587\n"+
			"smtp_helo_name lb1.example.com\nsmtp_connect_timeout 15", "", "", ""), to(func(m *config.Mail) {
			m.To, m.From = []string{"ops@example.com", "Night <night@example.com>", "root@localhost"}, "keepalived@lb1"
			m.Server, m.Helo = "mail.example.com:587", "lb1.example.com"
		}), nil},
		"IPv6": {mailed(strings.Replace(least, "192.0.2.25", "2001:db8::25 2525", 1), "", "", ""),
			to(func(m *config.Mail) { m.Server = "[2001:db8::25]:2525" }), nil},
		"no sender": {mailed(strings.Replace(least, "notification_email_from", "#", 1), "", "", ""),
			to(func(m *config.Mail) { m.From = "ops@example.com" }), []string{"2: no notification_email_from: "}},
		"no recipient": {mailed("smtp_server 192.0.2.25\nsmtp_alert on", "", "", ""), nil,
			[]string{"2: mail: keepalived sends none without notification_email and smtp_server"}},
		"no server": {mailed("notification_email {\nops@example.com\n}", "smtp_alert", "", ""), nil,
			[]string{"2: mail: keepalived sends none without notification_email and smtp_server"}},
		"wrong values": {mailed("notification_email {\nroot\nops@example.com\n}\nnotification_email_from lb\n"+
			"smtp_server 192.0.2.25 0\nsmtp_server 192.0.2.25\nsmtp_server http://x\nsmtp_server 192.0.2.26 smtp\n"+
			"smtp_connect_timeout long\nsmtp_connect_timeout 900\nsmtp_helo_name \"a b\"\n", "", "", ""),
			to(func(m *config.Mail) { m.From = "ops@example.com" }), []string{
				"2: no notification_email_from: ", `3: notification_email "root": is no address`,
				`6: notification_email_from "lb": is no address`, `7: smtp_server "192.0.2.25": port 0`,
				`9: smtp_server "http://x": is no host`, `10: smtp_server: "smtp" is no port`,
				`11: smtp_connect_timeout "long": is no number of seconds`,
				`12: smtp_connect_timeout 900: is longer than the director waits`,
				`13: smtp_helo_name "a b": is no name of a host`}},
	} {
		t.Run(name, func(t *testing.T) {
			d, i := mustImport(t, migrate.Keepalived, c.conf)
			if diff := cmp.Diff(c.want, d.Notify.Mail); diff != "" {
				t.Errorf("(-want +got):\n%s%s", diff, i.TOML)
			}
			want := map[string]time.Duration{"all keys": 15 * time.Second, "wrong values": 5 * time.Minute}[name]
			switch {
			case want == 0 && c.want != nil:
				want = 30 * time.Second
			case want == 0:
				want = 10 * time.Second
			}
			if d.Notify.Timeout != want {
				t.Errorf("timeout %v, want %v", d.Notify.Timeout, want)
			}
			for n, note := range i.Notes {
				text := strings.TrimPrefix(note.String(), "x.conf:")
				if n >= len(c.notes) || !strings.HasPrefix(text, c.notes[n]) {
					t.Errorf("note %q", text)
				}
			}
			if len(i.Notes) < len(c.notes) {
				t.Errorf("notes %q, want %q", i.Notes, c.notes)
			}
		})
	}
}

// TestManyRecipients: a list that is too long for the director is cut.
func TestManyRecipients(t *testing.T) {
	var all strings.Builder
	for n := range config.MaxRecipients + 2 {
		fmt.Fprintf(&all, "user%d@example.com\n", n)
	}
	global := "notification_email {\n" + all.String() + "}\nsmtp_server 192.0.2.25"
	d, i := mustImport(t, migrate.Keepalived, mailed(global, "", "", ""))
	if got := len(d.Notify.Mail.To); got != config.MaxRecipients || len(i.Notes) != 3 {
		t.Errorf("%d recipients, notes %q", got, i.Notes)
	}
}
