package migrate_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/migrate"
	"vstun/routing/vrrp"
)

// elected is a configuration with lines of global_defs, a vrrp_instance with lines of its own, further blocks, and a
// service at 192.0.2.1. "; " stands for the end of a line. The instance begins in line 4.
func elected(global, instance, more string) string {
	return "global_defs {; " + global + "; }; vrrp_instance VI_1 {; interface eth0; virtual_router_id 51; " + instance +
		"; }; " + more + "; " + server("")
}

const vip = "virtual_ipaddress {; 192.0.2.1; }"

// TestVRRP has what keepalived 2.2.7 makes of instances, by its dump and its log.
func TestVRRP(t *testing.T) {
	a := netip.MustParseAddr
	basic := func(change func(v *config.VRRP)) []config.VRRP {
		v := config.VRRP{Instance: vrrp.Instance{Name: "VI_1", Device: "eth0", RouterID: 51, Version: 2, Priority: 100,
			Interval: time.Second, Addrs: []netip.Addr{a("192.0.2.1")}, Preempt: true},
			VIPs: []netip.Addr{a("192.0.2.1")}}
		change(&v)
		return []config.VRRP{v}
	}
	same := func(*config.VRRP) {}
	owned := func(device, prefix string) config.Owned {
		return config.Owned{Device: device, Prefix: netip.MustParsePrefix(prefix)}
	}
	for name, c := range map[string]struct {
		text  string
		want  []config.VRRP
		notes []string // each matches one note, in their order
	}{
		"defaults": {elected("", vip, ""), basic(same), nil},
		"all": {elected("vrrp_version 2", "state BACKUP; priority 150; advert_int 3; nopreempt; authentication {; "+
			"auth_type PASS; auth_pass secret12; }; unicast_src_ip 10.0.2.2; unicast_peer {; 10.0.2.3; 10.0.2.4; }; "+
			"track_interface {; eth1; eth2 weight -20; }; virtual_ipaddress {; 192.0.2.1/32 dev eth0; 10.0.2.10/24; "+
			"10.0.3.10/25 dev eth1; }; virtual_ipaddress_excluded {; 10.0.4.10; 2001:db8::10/64; }", ""),
			basic(func(v *config.VRRP) {
				v.Priority, v.Interval, v.Preempt, v.Password = 150, 3*time.Second, false, "secret12"
				v.Source, v.Peers = a("10.0.2.2"), []netip.Addr{a("10.0.2.3"), a("10.0.2.4")}
				v.Addrs = append(v.Addrs, a("10.0.2.10"), a("10.0.3.10"))
				v.Excluded = []netip.Addr{a("10.0.4.10"), a("2001:db8::10")}
				v.Owned = []config.Owned{owned("eth0", "10.0.2.10/24"), owned("eth1", "10.0.3.10/25"),
					owned("eth0", "10.0.4.10/32"), owned("eth0", "2001:db8::10/64")}
				v.Track = []config.Track{{Device: "eth1"}, {Device: "eth2", Weight: -20}}
			}), nil},
		"version 3": {elected("vrrp_version 3", "advert_int 0.1; preempt_delay 4.5; priority 255; "+
			"v3_checksum_as_v2; "+vip,
			""), basic(func(v *config.VRRP) {
			v.Version, v.Interval, v.PreemptDelay, v.Priority = 3, 100*time.Millisecond, 4500*time.Millisecond, 255
			v.Checksum = vrrp.RFC9568
		}), nil},
		"its own version": {elected("vrrp_version 3", "version 2; "+vip, ""), basic(same), nil},
		"IPv6": {elected("", "version 2; virtual_ipaddress {; fe80::1; 2001:db8::10; }", ""),
			basic(func(v *config.VRRP) {
				v.Version, v.Addrs, v.VIPs = 3, []netip.Addr{a("fe80::1"), a("2001:db8::10")}, nil
				v.Owned = []config.Owned{owned("eth0", "fe80::1/128"), owned("eth0", "2001:db8::10/128")}
			}), []string{`^x.conf:4: version 2 has no IPv6`, `^x.conf:14: no vrrp_instance has the VIP 192.0.2.1: `}},
		"steps of a second": {elected("", "advert_int 1.6; "+vip, ""),
			basic(func(v *config.VRRP) { v.Interval *= 2 }),
			[]string{`^x.conf:7: advert_int 1.6s: version 2 has steps of 1s`}},
		"less than a second": {elected("", "advert_int 0.4; "+vip, ""), basic(same),
			[]string{`^x.conf:7: .*1s is in its place`}},
		"steps of 10 ms": {elected("", "version 3; advert_int 0.014; "+vip, ""),
			basic(func(v *config.VRRP) { v.Version, v.Interval = 3, 10*time.Millisecond }),
			[]string{`^x.conf:8: .*10ms is in its place`}},
		"a long password": {elected("", "authentication {; auth_type PASS; auth_pass abcdefghijk; }; "+vip, ""),
			basic(func(v *config.VRRP) { v.Password = "abcdefgh" }), nil},
		"half a letter": {elected("", "authentication {; auth_type PASS; auth_pass abcdefgé; }; "+vip, ""),
			basic(same), []string{`^x.conf:7: auth_pass: its first 8 bytes`}},
		"AH": {elected("", "authentication {; auth_type AH; auth_pass abc; }; "+vip, ""), basic(same),
			[]string{`^x.conf:7: auth_type AH: no counterpart.*PASS`}},
		"no auth_type": {elected("", "authentication {; auth_pass abc; }; "+vip, ""), basic(same),
			[]string{`^x.conf:7: authentication: .*without auth_type`}},
		"no auth_pass": {elected("", "authentication {; auth_type PASS; }; "+vip, ""), basic(same),
			[]string{`^x.conf:7: authentication: .*without auth_type`}},
		"password, version 3": {elected("", "version 3; authentication {; auth_type PASS; auth_pass abc; }; "+vip, ""),
			basic(func(v *config.VRRP) { v.Version = 3 }), []string{`^x.conf:8: authentication: .*version 3`}},
		"password, strict": {elected("vrrp_strict", "authentication {; auth_type PASS; auth_pass abc; }; "+vip, ""),
			basic(same), []string{`^x.conf:7: authentication: .*strict`}},
		"password, not strict": {elected("vrrp_strict", "strict_mode off; authentication {; auth_type PASS; "+
			"auth_pass abc; }; "+vip, ""),
			basic(func(v *config.VRRP) { v.Password = "abc" }), nil},

		"nopreempt of MASTER": {elected("", "state MASTER; nopreempt; preempt_delay 3; "+vip, ""), basic(same),
			[]string{`^x.conf:4: nopreempt and preempt_delay: .*state MASTER`}},
		"nopreempt of a strict MASTER": {elected("vrrp_strict", "state MASTER; nopreempt; "+vip, ""),
			basic(func(v *config.VRRP) { v.Preempt = false }), nil},
		"preempt_delay of nopreempt": {elected("", "nopreempt; preempt_delay 3; "+vip, ""),
			basic(func(v *config.VRRP) { v.Preempt = false }), []string{`^x.conf:4: preempt_delay`}},

		"wrong values": {elected("vrrp_version 4", "state SLAVE; priority 300; advert_int 0.004; version 1; "+
			"preempt_delay "+
			"2000; unicast_src_ip eth0; mcast_src_ip 2001:db8::1; interface eth/0; virtual_router_id 0; "+vip, ""),
			basic(same), []string{`^x.conf:2: vrrp_version "4"`, `^x.conf:7: state "SLAVE"`,
				`^x.conf:8: priority "300": 100`,
				`^x.conf:9: advert_int "0.004"`, `^x.conf:10: version "1"`, `^x.conf:11: preempt_delay "2000"`,
				`^x.conf:12: unicast_src_ip "eth0"`, `^x.conf:13: 2001:db8::1: is no address to send from`,
				`^x.conf:14: interface "eth/0"`, `^x.conf:15: virtual_router_id "0"`}},
		"wrong addresses": {elected("", "virtual_ipaddress {; 192.0.2.1; eth0; 10.0.2.10/33; 10.0.2.11 eth1; "+
			"10.0.2.12 dev "+
			"eth/1; 2001:db8::10; 224.0.0.1; 10.0.2.13 brd 10.0.2.255 label eth0:1; }; unicast_peer {; 10.0.2.1 "+
			"min_ttl "+
			"3; 10.0.2.10; 2001:db8::1; peer; }", ""),
			basic(func(v *config.VRRP) {
				v.Addrs = append(v.Addrs, a("10.0.2.10"), a("10.0.2.11"), a("10.0.2.12"), a("10.0.2.13"))
				for _, o := range v.Addrs[1:] {
					v.Owned = append(v.Owned, config.Owned{Device: "eth0", Prefix: netip.PrefixFrom(o, 32)})
				}
				v.Peers = []netip.Addr{a("10.0.2.1")}
			}), []string{`^x.conf:9: virtual_ipaddress: "eth0"`, `^x.conf:10: .*/32 is in its place`,
				`^x.conf:11: virtual_ipaddress: "eth1" is unknown`, `^x.conf:12: .*"eth/1" is no name`,
				`^x.conf:13: .*another family.*virtual_ipaddress_excluded`,
				`^x.conf:14: virtual_ipaddress: "224.0.0.1"`,
				`^x.conf:15: virtual_ipaddress: brd, label: no counterpart, and none needed`,
				`^x.conf:18: unicast_peer: min_ttl 3`, `^x.conf:19: unicast_peer 10.0.2.10: is an address that moves`,
				`^x.conf:20: unicast_peer 2001:db8::1: is of another family`, `^x.conf:21: unicast_peer: "peer"`}},
		"no peer is left": {elected("", "unicast_peer {; ; 2001:db8::1; }; "+vip, ""), basic(same),
			[]string{`^x.conf:4: vrrp_instance VI_1: no unicast_peer is left: .*multicast`,
				`unicast_peer 2001:db8::1`}},
		"a VIP of another device": {elected("", "virtual_ipaddress {; 192.0.2.1 dev eth1; }", ""), basic(same),
			[]string{`^x.conf:8: VIP 192.0.2.1 dev eth1: `}},
		"link-local source": {elected("", "mcast_src_ip fe80::2; virtual_ipaddress {; 2001:db8::10; }; "+
			"virtual_ipaddress_excluded {; 192.0.2.1; }", ""), basic(func(v *config.VRRP) {
			v.Version, v.Source, v.Addrs, v.Excluded = 3, a("fe80::2"), []netip.Addr{a("2001:db8::10")}, v.Addrs
			v.Owned = []config.Owned{owned("eth0", "2001:db8::10/128")}
		}), nil},
		"global source": {elected("", "mcast_src_ip 2001:db8::2; virtual_ipaddress {; 2001:db8::10; }; "+
			"virtual_ipaddress_excluded {; 192.0.2.1; }", ""), basic(func(v *config.VRRP) {
			v.Version, v.Addrs, v.Excluded = 3, []netip.Addr{a("2001:db8::10")}, v.Addrs
			v.Owned = []config.Owned{owned("eth0", "2001:db8::10/128")}
		}), []string{`^x.conf:7: 2001:db8::2: IPv6 multicast is sent from a link-local`}},

		"a source that moves": {elected("", "unicast_src_ip 10.0.3.1; "+vip, "vrrp_instance A {; interface eth1; "+
			"virtual_router_id 7; virtual_ipaddress {; 10.0.3.1; }; }"),
			append(basic(same), config.VRRP{Instance: vrrp.Instance{Name: "A", Device: "eth1", RouterID: 7, Version: 2,
				Priority: 100, Interval: time.Second, Addrs: []netip.Addr{a("10.0.3.1")}, Preempt: true},
				Owned: []config.Owned{owned("eth1", "10.0.3.1/32")}}),
			[]string{`^x.conf:7: 10.0.3.1: is an address that moves with vrrp_instance A`}},

		"tracks": {elected("", "track_interface {; eth0; eth1 weight 5 reverse; eth2 weight 300; eth/3; eth4 weight "+
			"7; eth4; "+
			"}; track_file {; w; }; track_process {; p; }; track_bfd {; b; }; "+vip, "track_file w {; file /run/w; }"),
			basic(func(v *config.VRRP) { v.Track = []config.Track{{Device: "eth4", Weight: 7}} }),
			[]string{`^x.conf:9: track_interface eth1: reverse`, `^x.conf:10: .*weight "300"`, `^x.conf:11: .*"eth/3"`,
				`^x.conf:16: track_file w: `, `^x.conf:19: track_process p: `, `^x.conf:22: track_bfd b: `}},
		"scripts": {elected("", "track_script {; near weight 9; near; far; own; none; turned; }; "+strings.Replace(vip,
			".1;",
			".1/24;", 1), "vrrp_script near {; script \"/bin/ping -c 1 192.0.2.254\"; weight -3; }; vrrp_script far "+
			"{; script "+
			"\"/usr/bin/ping -c1 10.9.9.9\"; weight -4; }; vrrp_script own {; script /usr/local/bin/check; weight "+
			"-2; }; "+
			"vrrp_script other {; script /bin/true; }; vrrp_script turned {; script \"ping 192.0.2.254\"; weight 0 "+
			"reverse; }"), basic(func(v *config.VRRP) {
			v.Track = []config.Track{{Gateway: a("192.0.2.254"), Weight: 9}}
		}), []string{`^x.conf:10: track_script far: .*ping -c1 10.9.9.9: .*{ gateway = "10.9.9.9", weight = -4 }`,
			`^x.conf:11: track_script own: /usr/local/bin/check: .*{ service = NAME, weight = -2 }`,
			`^x.conf:12: track_script none: there is no vrrp_script`, `^x.conf:13: track_script turned: `,
			`^x.conf:31: vrrp_script other: nothing refers to it`}},

		"a group": {elected("", "track_interface {; eth1 weight -5; }; track_script {; p; }; "+vip,
			"vrrp_sync_group G {; "+
				"group {; VI_1; VI_9; }; group {; VI_2; }; track_interface {; eth2 weight 5; eth3; }; }; "+
				"vrrp_sync_group H {; group {; VI_1; }; }; vrrp_sync_group G {; }; vrrp_script p {; "+
				"script \"ping 192.0.2.9\"; weight 2; }"),
			basic(func(v *config.VRRP) {
				v.Group = "G"
				v.Track = []config.Track{{Device: "eth1"}, {Device: "eth2", Weight: 5}, {Device: "eth3"}}
			}), []string{`^x.conf:8: track_interface eth1: .*vrrp_sync_group`,
				`^x.conf:11: track_script p: .*with a weight`,
				`^x.conf:20: vrrp_sync_group G: there is no vrrp_instance VI_9`,
				`^x.conf:22: group of .*G: is there twice`,
				`^x.conf:32: vrrp_sync_group H: VI_1 is in G already`,
				`^x.conf:35: vrrp_sync_group "G": has no name of`}},
		"a group with weights": {elected("", "track_interface {; eth1 weight -5; }; "+vip, "vrrp_sync_group G {; "+
			"sync_group_tracking_weight; group {; VI_1; }; }"),
			basic(func(v *config.VRRP) {
				v.Group, v.Track = "G", []config.Track{{Device: "eth1", Weight: -5}}
			}), nil},

		"others": {elected("", vip, "vrrp_instance VI_1 {; }; vrrp_instance {; }; vrrp_instance A {; "+
			"virtual_router_id 7; "+
			"virtual_ipaddress {; 10.0.2.1; }; }; vrrp_instance B {; interface eth0; "+vip+"; }; vrrp_instance C {; "+
			"interface eth0; virtual_router_id 8; }; vrrp_instance D {; interface eth0; virtual_router_id 51; "+
			"virtual_ipaddress {; 10.0.2.2; }; }; vrrp_instance E {; interface eth0; virtual_router_id 9; "+vip+"; }"),
			basic(same), []string{`^x.conf:11: vrrp_instance VI_1: is there twice`,
				`^x.conf:13: vrrp_instance without a`,
				`^x.conf:15: vrrp_instance A: .*needs interface`, `^x.conf:21: vrrp_instance B: .*virtual_router_id`,
				`^x.conf:27: vrrp_instance C: .*virtual_ipaddress`,
				`^x.conf:31: vrrp_instance D: virtual_router_id 51 `,
				`^x.conf:38: vrrp_instance E: no address is left`,
				`^x.conf:42: 192.0.2.1 is one of vrrp_instance VI_1`}},
		"without effect": {elected("vrrp_mcast_group4 224.0.0.99; vrrp_startup_delay 5; vrrp_notify_fifo /run/x",
			"use_vmac; virtual_routes {; 0.0.0.0/0 via 10.0.2.1; }; notify_stop /bin/true; frobnicate; debug 2; "+vip,
			"garp_group {; }; vrrp_track_process p {; }"), basic(same), []string{`^x.conf:2: vrrp_mcast_group4`,
			`^x.conf:3: vrrp_startup_delay`, `^x.conf:4: vrrp_notify_fifo`, `^x.conf:9: use_vmac`,
			`^x.conf:10: virtual_routes`, `^x.conf:13: notify_stop: .*ExecStopPost`, `^x.conf:14: frobnicate: unknown`,
			`^x.conf:15: debug: no counterpart, and none needed`, `^x.conf:20: garp_group: `,
			`^x.conf:22: vrrp_track_process p: `}},
		"HMAC": {elected("", "auth_hmac {; key 1 hex:00; key 2 file:/etc/k; active_key 2; mode receive-only; }; "+vip,
			""),
			basic(same), []string{`^x.conf:7: auth_hmac: .*key = "/etc/k", key_id = 2, key_mode = "permissive" in`}},
		"HMAC with a key in the file": {elected("", "auth_hmac {; key 3 hex:00; }; "+vip, ""),
			basic(same), []string{`^x.conf:7: auth_hmac: .*key = "FILE", key_id = 3 in`}},
	} {
		t.Run(name, func(t *testing.T) {
			d, i := mustImport(t, migrate.Keepalived, string(lines(c.text)))
			if !reflect.DeepEqual(d.VRRP, c.want) {
				t.Errorf("got  %+v\nwant %+v", d.VRRP, c.want)
			}
			matchNotes(t, i, c.notes)
			if len(d.Warnings) > 0 {
				t.Errorf("warnings %q", d.Warnings)
			}
		})
	}
}

// matchNotes fails unless each pattern matches one note, in their order.
func matchNotes(t *testing.T, i *migrate.Import, patterns []string) {
	t.Helper()
	for n, note := range i.Notes {
		if n >= len(patterns) || !regexp.MustCompile(patterns[n]).MatchString(note.String()) {
			t.Errorf("note %q", note)
		}
	}
	if len(i.Notes) < len(patterns) {
		t.Errorf("notes %q, want %q", i.Notes, patterns)
	}
}

// TestSyncDaemon imports lvs_sync_daemon and ipvsadm's --start-daemon.
func TestSyncDaemon(t *testing.T) {
	usual := config.Sync{On: true, IPVS: true, Interface: "eth1", Group: netip.MustParseAddr("224.0.0.81"), Port: 8848}
	with := func(change func(s *config.Sync)) config.Sync {
		s := usual
		change(&s)
		return s
	}
	daemon := func(words string) string {
		return string(lines(elected("lvs_sync_daemon "+words, vip, "")))
	}
	ipvs := func(rules string) string {
		return "-A -t 192.0.2.1:80\n-a -t 192.0.2.1:80 -r 10.0.11.2 -i\n" + rules
	}
	for name, c := range map[string]struct {
		read  importer
		text  string
		want  config.Sync
		notes []string
	}{
		"alone":    {migrate.Keepalived, daemon("eth1"), usual, nil},
		"instance": {migrate.Keepalived, daemon("eth1 VI_1"), with(func(s *config.Sync) { s.ID = 51 }), nil},
		"all": {migrate.Keepalived, daemon("eth1 inst VI_1 id 7 maxlen 1400 port 9000 ttl 3 group 239.1.1.1"),
			with(func(s *config.Sync) { s.ID, s.Port, s.Group = 7, 9000, netip.MustParseAddr("239.1.1.1") }),
			[]string{`^x.conf:2: lvs_sync_daemon: maxlen 1400`, `^x.conf:2: lvs_sync_daemon: ttl 3: .*peers`}},
		"former ID": {migrate.Keepalived, daemon("eth1 VI_1 9"), with(func(s *config.Sync) { s.ID = 9 }),
			nil},
		"an unknown instance": {migrate.Keepalived, daemon("eth1 VI_2"), usual,
			[]string{`there is no vrrp_instance VI_2`}},
		"wrong values": {migrate.Keepalived, daemon("eth1 id 256 port 80 group 10.0.0.1 x"), usual, []string{
			`id "256"`, `port "80"`, `group "10.0.0.1"`, `"x": unknown`}},
		"no device": {migrate.Keepalived, daemon("eth/1"), config.Sync{}, []string{`lvs_sync_daemon "eth/1"`}},
		"of the instance": {migrate.Keepalived, string(lines(elected("", "lvs_sync_daemon_interface eth1; "+vip,
			""))), with(func(s *config.Sync) { s.ID = 51 }), nil},
		"of the instance2": {migrate.Keepalived, string(lines(elected("lvs_sync_daemon eth1",
			"lvs_sync_daemon_interface eth2; "+vip, ""))), usual,
			[]string{`^x.conf:7: lvs_sync_daemon_interface eth2: that of line 2 is taken`}},
		"ipvsadm": {migrate.IPVSAdm, ipvs("--start-daemon master --mcast-interface eth1 --syncid 5 --mcast-port " +
			"9000\n" +
			"--start-daemon backup --mcast-interface eth1 --syncid 5 --mcast-port 9000\n"),
			with(func(s *config.Sync) { s.ID, s.Port = 5, 9000 }), nil},
		"ipvsadm, two": {migrate.IPVSAdm, ipvs("--start-daemon master --mcast-interface eth1 --mcast-ttl 3\n" +
			"--start-daemon backup --mcast-interface eth2\n"), usual, []string{`^x.conf:3: --mcast-ttl`,
			`^x.conf:4: --start-daemon eth2: that of line 3 is taken`}},
		"ipvsadm, no device": {migrate.IPVSAdm, ipvs("--start-daemon master\n"), config.Sync{},
			[]string{`--start-daemon ""`}},
	} {
		t.Run(name, func(t *testing.T) {
			d, i := mustImport(t, c.read, c.text)
			if !reflect.DeepEqual(d.Sync, c.want) {
				t.Errorf("got  %+v\nwant %+v", d.Sync, c.want)
			}
			matchNotes(t, i, c.notes)
		})
	}
}

// TestVRRPMail: keepalived mails about roles if smtp_alert_vrrp, smtp_alert or the instance's own says so.
func TestVRRPMail(t *testing.T) {
	const least = "notification_email {; ops@example.com; }; notification_email_from lb@example.com; smtp_server " +
		"192.0.2.25; "
	second := "vrrp_instance VI_2 {; interface eth0; virtual_router_id 52; virtual_ipaddress {; 10.0.2.10; }; "
	for name, c := range map[string]struct {
		text  string
		kinds []string
		notes []string
	}{
		"default":         {elected(least, vip, ""), []string{"realserver"}, nil},
		"smtp_alert":      {elected(least+"smtp_alert", vip, ""), nil, nil},
		"smtp_alert_vrrp": {elected(least+"smtp_alert_vrrp", vip, ""), []string{"realserver", "vrrp"}, nil},
		"not of VRRP": {elected(least+"smtp_alert; smtp_alert_vrrp off", vip, ""), []string{"service",
			"realserver"}, nil},
		"VRRP alone": {elected(least+"smtp_alert_checker off", "smtp_alert; "+vip, ""), []string{"vrrp"}, nil},
		"nothing":    {elected(least+"smtp_alert off", vip, ""), nil, []string{`smtp_alert is off for every`}},
		"of one": {elected(least, "smtp_alert; "+vip, second+"}"), []string{"realserver", "vrrp"},
			[]string{`^x.conf:17: smtp_alert: is off for this vrrp_instance`}},
		"of a group": {elected(least+"no_email_faults", vip, "vrrp_sync_group G {; smtp_alert; group {; VI_1; }; }"),
			[]string{"realserver", "vrrp"}, []string{`^x.conf:7: no_email_faults`}},
	} {
		t.Run(name, func(t *testing.T) {
			d, i := mustImport(t, migrate.Keepalived, string(lines(c.text)))
			switch m := d.Notify.Mail; {
			case (m == nil) != (name == "nothing"):
				t.Errorf("mail %+v", m)
			case m != nil && !slices.Equal(m.Kinds, c.kinds):
				t.Errorf("kinds %q, want %q", m.Kinds, c.kinds)
			}
			matchNotes(t, i, c.notes)
		})
	}
}

// TestVRRPScripts runs the command that keepalived's notify scripts become, as the director does when a role changes.
func TestVRRPScripts(t *testing.T) {
	dir := t.TempDir()
	script, out := filepath.Join(dir, "script"), filepath.Join(dir, "out")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nfor a; do printf '<%s>' \"$a\" >>"+out+"; done\n"),
		0o755); err != nil {
		t.Fatal(err)
	}
	d, i := mustImport(t, migrate.Keepalived, string(lines(elected("", "notify_master \""+script+" up it\" root; "+
		"notify_backup \""+script+" down\"; notify "+script+"; priority 150; notify_fault relative; "+vip,
		"vrrp_instance \"VI 2\" {; interface eth1; virtual_router_id 52; virtual_ipaddress {; 10.0.3.1; }; "+
			"notify_fault "+
			"\""+script+" fault\"; }; vrrp_sync_group G {; group {; VI_1; \"VI 2\"; }; notify_master \""+script+
			" group\"; notify "+script+"; }"))))
	matchNotes(t, i, []string{`^x.conf:7: notify_master runs as root`, `^x.conf:11: notify_fault "relative": is no`})
	for _, c := range []struct{ instance, role, want string }{
		{"VI_1", "master", "<up><it><INSTANCE><VI_1><MASTER><150><group><GROUP><G><MASTER><0>"},
		{"VI_1", "backup", "<down><INSTANCE><VI_1><BACKUP><150><GROUP><G><BACKUP><0>"},
		{"VI_1", "fault", "<INSTANCE><VI_1><FAULT><150><GROUP><G><FAULT><0>"},
		{"VI_1", "initialize", ""},
		{"VI-2", "fault", "<fault>"},
		{"VI-2", "master", ""},
	} {
		if err := os.WriteFile(out, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		args := append(slices.Clone(d.Notify.Command[1:]), "vrrp", c.instance, "-", "initialize", c.role, "why \"not\"")
		if text, err := exec.Command(d.Notify.Command[0], args...).CombinedOutput(); err != nil || len(text) > 0 {
			t.Errorf("%v: %v, %s", c, err, text)
		}
		if got, err := os.ReadFile(out); string(got) != c.want || err != nil {
			t.Errorf("%s %s: %s, %v, want %s", c.instance, c.role, got, err, c.want)
		}
	}
}

// TestKeywordsOfVRRP: of the words of keepalived's manual, the import knows all that keepalived knows in the blocks of
// VRRP.
func TestKeywordsOfVRRP(t *testing.T) {
	program, err := exec.LookPath("keepalived")
	if err != nil {
		t.Skip("SKIPPED: needs keepalived: apt-get install keepalived (or make deps)")
	}
	manual, err := exec.Command("zcat", "/usr/share/man/man5/keepalived.conf.5.gz").Output()
	if err != nil {
		t.Skip("SKIPPED: needs the manual of keepalived: ", err)
	}
	var words []string
	for _, w := range regexp.MustCompile(`[a-z][a-z0-9]*(_[a-z0-9]+)*`).FindAllString(string(manual), -1) {
		if !strings.HasPrefix(w, "include") {
			words = append(words, w)
		}
	}
	slices.Sort(words)
	words = slices.Compact(words)
	unknown := regexp.MustCompile(`Unknown keyword '([\w-]+)'`)
	for _, block := range []string{"vrrp_instance", "vrrp_sync_group"} {
		var text strings.Builder
		for n, w := range words { // each in a block of its own: its braces may be one pair too many
			fmt.Fprintf(&text, "%s V%d {\n%s 2 {\n}\n}\n", block, n, w)
		}
		file := filepath.Join(t.TempDir(), "x.conf")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "--config-test", "--use-file="+file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it ends by a signal to its process group
		out, _ := cmd.CombinedOutput()                       // whose exit status says that it has said something
		isUnknown := map[string]bool{}
		for _, m := range unknown.FindAllStringSubmatch(string(out), -1) {
			isUnknown[m[1]] = true
		}
		known := len(words) - len(isUnknown)
		if known < 15 || known > 150 {
			t.Fatalf("keepalived knows %d of %d words in %s:\n%s", known, len(words), block, out)
		}
		i, err := migrate.Keepalived(file, []byte(text.String()), options())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range i.Notes {
			if w, _, ok := strings.Cut(n.Text, ": unknown to this program"); ok && !isUnknown[w] {
				t.Errorf("keepalived knows %s in %s, the import does not", w, block)
			}
		}
	}
}
