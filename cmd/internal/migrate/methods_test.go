package migrate_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"vstun/cmd/internal/migrate"
)

// TestAnyMethods: whatever methods, ports and addresses a virtual_server, its real_servers and its sorry server have,
// the director accepts the import.
func TestAnyMethods(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	one := func(of ...string) string { return of[rnd.IntN(len(of))] }
	methods := []string{"", "TUN", "DR", "NAT", "TUN type gre csum", "TUN type gue port 6081", "none"}
	addresses := []string{"198.51.100.1", "198.51.100.2", "192.0.2.1", "127.0.0.1", "::1", "2001:db8::1",
		"2001:db8:2::1"}
	ports := []string{"", "0", "80", "8080"}
	line := func(format, word string) string {
		if word == "" {
			return ""
		}
		return fmt.Sprintf(format+"\n", word)
	}
	for range 1000 {
		var b strings.Builder
		b.WriteString("virtual_server_group g {\n")
		for range 1 + rnd.IntN(3) {
			b.WriteString(one("192.0.2.1", "192.0.2.2", "2001:db8::1") + " " + one(ports...) + "\n")
		}
		b.WriteString("}\nvirtual_server " + one("group g", "192.0.2.1 80", "2001:db8::1 0", "fwmark 3",
			"192.0.2.9 443") + " {\nprotocol TCP\n" + line("lb_kind %s", one(methods...)))
		for range rnd.IntN(3) {
			b.WriteString(line("sorry_server %s "+one(ports...), one(addresses...)) +
				line("sorry_server_lvs_method %s", one(methods...)))
		}
		for range rnd.IntN(5) {
			b.WriteString("real_server " + one(addresses...) + " " + one(ports...) + " {\n" +
				line("lvs_method %s", one(methods...)) +
				one("", "TCP_CHECK {\n}\n", "TCP_CHECK {\nconnect_port 9000\n}\n", "PING_CHECK {\n}\n") + "}\n")
		}
		b.WriteString("}\n")
		i, err := migrate.Keepalived("x.conf", []byte(b.String()), options())
		if err != nil {
			t.Fatalf("%v in\n%s", err, &b)
		}
		if checkImport(t, i); t.Failed() {
			t.Fatalf("of\n%s", &b)
		}
	}
}
