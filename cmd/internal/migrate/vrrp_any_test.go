package migrate_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"vstun/cmd/internal/migrate"
)

// TestAnyInstances: whatever instances, groups and sync daemons a file has, the director accepts the import.
func TestAnyInstances(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	one := func(of ...string) string { return of[rnd.IntN(len(of))] }
	addresses := []string{"192.0.2.1", "192.0.2.2/24", "10.0.2.10/24 dev eth1", "10.0.2.11", "2001:db8::1",
		"2001:db8::10/64", "fe80::1/64", "127.0.0.1", "0.0.0.0", "224.0.0.1", "::ffff:192.0.2.9", "10.0.2.12/0", "x"}
	lines := []string{"state MASTER", "state BACKUP", "interface eth1", "interface eth0", "virtual_router_id 51",
		"virtual_router_id 52", "priority 255", "priority 0", "version 2", "version 3", "advert_int 0.01",
		"advert_int 255",
		"advert_int 1.5", "nopreempt", "preempt_delay 1000", "preempt_delay 0.0004", "strict_mode", "v3_checksum_as_v2",
		"authentication {\nauth_type PASS\nauth_pass \"a\\b\"\n}", "authentication {\nauth_type AH\nauth_pass é\n}",
		"unicast_src_ip 10.0.2.2", "unicast_src_ip 192.0.2.2", "mcast_src_ip fe80::2", "mcast_src_ip 2001:db8::2",
		"unicast_peer {\n10.0.2.3\n10.0.2.3\n}", "unicast_peer {\n2001:db8::3\nfe80::3\n}", "unicast_peer " +
			"{\n10.0.2.10\n}",
		"track_interface {\neth0\neth1 weight 7\neth1\n}", "track_script {\np\nq weight -9\n}", "smtp_alert",
		"notify /bin/true", "notify_master \"/bin/echo 'it''s' $x\"", "lvs_sync_daemon_interface eth1"}
	list := func(name string) string {
		var b strings.Builder
		for range 1 + rnd.IntN(4) {
			b.WriteString(one(addresses...) + "\n")
		}
		return name + " {\n" + b.String() + "}\n"
	}
	taken := 0
	for range 1000 {
		var b strings.Builder
		b.WriteString("global_defs {\n" + one("", "vrrp_strict\n", "vrrp_version 3\n") + one("", "lvs_sync_daemon "+
			"eth0 A id 3\n",
			"lvs_sync_daemon eth0 inst B port 9000 group ff02::1\n") + "notification_email {\na@example.com\n}\n" +
			"smtp_server 192.0.2.25\n" + one("", "smtp_alert_vrrp\n", "smtp_alert\n") + "}\n" +
			"vrrp_script p {\nscript \"ping 10.0.2.1\"\n}\nvrrp_script q {\nscript \"ping 2001:db8::99\"\n}\n" +
			"virtual_server 192.0.2.1 80 {\nprotocol TCP\n}\nvirtual_server 2001:db8::1 80 {\nprotocol TCP\n}\n")
		for _, name := range []string{"A", "B", "\"C d\"", one("A", "é", "\"\"")}[:1+rnd.IntN(4)] {
			b.WriteString("vrrp_instance " + name + " {\n")
			if rnd.IntN(8) > 0 {
				b.WriteString("interface eth0\nvirtual_router_id " + one("1", "2", "3", "4") + "\n")
			}
			for range rnd.IntN(7) {
				b.WriteString(one(lines...) + "\n")
			}
			b.WriteString(list("virtual_ipaddress") + one("", list("virtual_ipaddress_excluded")) + "}\n")
		}
		b.WriteString(one("", "vrrp_sync_group G {\ngroup {\nA\nB\n}\nnotify /bin/true\ntrack_interface {\neth2 "+
			"weight -3\n}\n"+
			"track_script {\nq\n}\n}\n"))
		i, err := migrate.Keepalived("x.conf", []byte(b.String()), options())
		if err != nil {
			t.Fatalf("%v in\n%s", err, &b)
		}
		if d := checkImport(t, i); !t.Failed() {
			taken += len(d.VRRP)
			continue
		}
		t.Fatalf("of\n%s", &b)
	}
	if taken < 1000 {
		t.Errorf("only %d instances", taken)
	}
}
