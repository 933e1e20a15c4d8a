package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/cmd/internal/lab"
	"vstun/encap/wireguard"
	"vstun/testdata/testkit"
)

// A file is the lines of TOML of each table: "director", "service.check".
type file map[string][]string

// with returns f with these lines in a table. Each replaces the line with the same key, or, with the value absent,
// removes it.
func (f file) with(table string, lines ...string) file {
	next := maps.Clone(f)
	next[table] = slices.Clone(f[table])
	for _, line := range lines {
		next[table] = slices.DeleteFunc(next[table], func(l string) bool { return keyOf(l) == keyOf(line) })
		if _, value, _ := strings.Cut(line, "= "); value != "absent" {
			next[table] = append(next[table], line)
		}
	}
	return next
}

func keyOf(line string) string {
	key, _, _ := strings.Cut(line, "=")
	return strings.TrimSpace(key)
}

// toml returns f as TOML, with the tables in this order.
func (f file) toml(tables ...string) string {
	var b strings.Builder
	for _, table := range tables {
		if len(f[table]) == 0 {
			continue
		}
		header := "[" + table + "]"
		if slices.Contains([]string{"service", "service.realserver", "vrrp", "vrrp.track", "wireguard.peer", "tunnel",
			"bgp.peer", "bgp.vip"}, table) {
			header = "[" + header + "]"
		}
		fmt.Fprintf(&b, "%s\n%s\n", header, strings.Join(f[table], "\n"))
	}
	return b.String()
}

// keysOf are the keys of a program's reference in the manual, each behind its table.
func keysOf(rows map[string][]keyRow) (keys []string) {
	for table, list := range rows {
		for _, r := range list {
			keys = append(keys, table+"."+r.key)
		}
	}
	slices.Sort(keys)
	return keys
}

// restartKeys are the keys for which the manual asks for a restart, in the sentence that begins so. Where tables of
// keys mark such keys, they are the same.
func restartKeys(t *testing.T, program, sentence string) (keys []string) {
	t.Helper()
	_, text, found := strings.Cut(strings.Join(strings.Fields(testkit.ManualText(t)), " "), " "+sentence)
	if !found {
		t.Fatalf("the manual has no sentence %q", sentence)
	}
	text, _, _ = strings.Cut(text, ". ")
	text, _, _ = strings.Cut(text, ": ")
	text, _, _ = strings.Cut(text, ", and ")
	for _, m := range regexp.MustCompile("`([a-z_.]+)`").FindAllStringSubmatch(text, -1) {
		keys = append(keys, m[1])
	}
	slices.Sort(keys)
	var marked []string
	for table, rows := range manualKeys(t, program) {
		for _, r := range rows {
			if r.needsRestart() {
				marked = append(marked, strings.TrimPrefix(table+"."+r.key, program+"."))
			}
		}
	}
	if slices.Sort(marked); marked != nil && !slices.Equal(keys, marked) {
		t.Errorf("%s: the tables mark %v, and the sentence names %v", program, marked, keys)
	}
	return keys
}

// mustChangeEach reloads p for each key of the reference: with the key's change, and back. Changes of the keys in
// restarts are refused; every other one is printed.
func (p *program) mustChangeEach(base file, tables []string, changes map[string][]string, restarts []string) {
	p.t.Helper()
	reload := func(f file) result {
		p.t.Helper()
		p.configure(f.toml(tables...))
		return p.command("reload", "--socket", p.socket) // whatever the file says
	}
	keys, reference := keysOf(manualKeys(p.t, p.name)), p.name+".toml"
	for key := range changes {
		if !slices.Contains(keys, key) {
			p.t.Errorf("%s: %s is not in the manual", reference, key)
		}
	}
	for _, key := range keys {
		lines, known := changes[key]
		if !known {
			p.t.Errorf("%s: this test changes no %s", reference, key)
			continue
		}
		dot := strings.LastIndex(key, ".")
		table, name := key[:dot], key[dot+1:]
		printed := strings.TrimSuffix(name, "s")
		if table == "service.persistence" { // is printed as a whole
			printed = "persistence"
		}
		short := strings.TrimPrefix(strings.TrimPrefix(key, "director."), "realserver.")
		got := reload(base.with(table, lines...))
		switch {
		case slices.Contains(restarts, short):
			refusal := " " + short + " changed, which a reload can't do: restart"
			if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, refusal) {
				p.t.Errorf("%s: exit status %d, want a refusal:\n%s%s", key, got.code, got.stdout, got.stderr)
			}
			if got := reload(base); got.stdout != "nothing changed\n" {
				p.t.Errorf("%s: the reload back prints %s%s", key, got.stdout, got.stderr)
			}
			continue
		case got.code != 0 || got.stdout == "nothing changed\n" ||
			!strings.Contains(got.stdout, printed) && !strings.Contains(got.stdout, ": added"):
			p.t.Errorf("%s: exit status %d, want it changed:\n%s%s", key, got.code, got.stdout, got.stderr)
		}
		if got := reload(base); got.code != 0 || got.stdout == "nothing changed\n" {
			p.t.Errorf("%s: the reload back: exit status %d\n%s%s", key, got.code, got.stdout, got.stderr)
		}
	}
	for _, key := range restarts {
		if !slices.ContainsFunc(keys, func(k string) bool { return strings.HasSuffix(k, "."+key) || k == key }) {
			p.t.Errorf("%s has no key %s", reference, key)
		}
	}
}

// TestReloadOfEveryKeyOfDirector: a reload changes every key of the manual, except those for which the manual asks for
// a restart.
func TestReloadOfEveryKeyOfDirector(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	p := s.prepare(s.Director, "director")
	hmacKey, otherKey := filepath.Join(s.dir, "vrrp.key"), filepath.Join(s.dir, "other.key")
	for n, path := range []string{hmacKey, otherKey} {
		if err := os.WriteFile(path, []byte(strings.Repeat("key", 11+n)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := file{
		"director":    {fmt.Sprintf("control = %q", p.socket), `fast_path = "off"`},
		"notify.mail": {`to = "ops@example.com"`, `from = "lb@example.com"`, `server = "127.0.0.1:25"`},
		"service": {`name = "web"`, `vip = ["198.51.100.80", "198.51.100.82"]`, `protocol = "tcp"`, `port = 80`,
			`scheduler = "sh"`, `sorry_server = "10.0.2.9"`, `sorry_forward = "dr"`},
		"service.resolve":    {`srv = "_http._tcp.test"`, `server = "127.0.0.1"`},
		"service.check":      {`type = "http"`},
		"service.realserver": {`address = "10.0.11.2"`, "weight = 5", `forward = "tun"`, `encap = "wireguard"`},
		"vrrp": {`name = "VI_1"`, `interface = "eth0"`, "router_id = 51",
			`addresses = ["198.51.100.80", "198.51.100.82"]`,
			fmt.Sprintf("key = %q", hmacKey)},
		"vrrp.track": {`interface = "eth1"`},
		"bgp":        {"as = 65010", `router_id = "10.0.2.2"`},
		"bgp.peer":   {`address = "10.0.2.1"`, "as = 65000"},
		"bgp.vip":    {`address = "198.51.100.80"`, "med = 5"},
	}
	tables := []string{"director", "connections", "connections.timeouts", "notify", "notify.mail", "service",
		"service.persistence", "service.check", "service.resolve", "service.realserver",
		"service.realserver.wireguard", "vrrp", "vrrp.track", "sync", "second_chance", "bgp", "bgp.peer",
		"bgp.peer.bfd", "bgp.vip", "wireguard", "tunnel", "tunnel.probe", "tunnel.wireguard"}
	cert, key := filepath.Join(s.dir, "client.pem"), filepath.Join(s.dir, "client.key")
	issueCertificate(t, "director", cert, key)
	both := filepath.Join(s.dir, "both.pem")
	issueCertificate(t, "director", both, key+"2")
	var pair []byte
	for _, path := range []string{both, key + "2"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pair = append(pair, text...)
	}
	if err := os.WriteFile(both, pair, 0o600); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(s.dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	syncKey := filepath.Join(s.dir, "sync.key")
	for _, path := range []string{syncKey, syncKey + "2"} {
		if err := os.WriteFile(path, []byte(strings.Repeat(path, 32)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	base["wireguard"], base["service.realserver.wireguard"] = s.everyWireGuardKey()
	s.addTunnel(base, s.Director)
	base["sync"] = []string{`interface = "eth0"`, fmt.Sprintf("key = %q", syncKey)}
	base["second_chance"] = []string{fmt.Sprintf("key = %q", syncKey)}
	p.configure(base.toml(tables...))
	p.start()
	p.mustChangeEach(base, tables, s.withTunnelKeys(map[string][]string{
		"director.tun":        {`tun = "vs7"`},
		"director.device":     {`device = "tap"`},
		"director.bridge":     {`device = "tap"`, `bridge = "br0"`},
		"director.table":      {"table = 30399"},
		"director.queues":     {"queues = 7"},
		"director.offload":    {`offload = "off"`},
		"director.source":     {`source = "10.0.2.2"`},
		"director.control":    {`control = "/run/vstun/other.sock"`},
		"director.metrics":    {`metrics = "127.0.0.1:9464"`},
		"director.log":        {`log = "debug"`},
		"director.no_service": {`no_service = "drop"`},

		"director.no_connection": {`no_connection = "drop"`},
		"director.unknown_flows": {`unknown_flows = "hash"`},

		"director.announce":          {`announce = "none"`},
		"director.announce_devices":  {`announce_devices = ["eth0"]`},
		"director.announce_conflict": {`announce_conflict = "warn"`},
		"director.fast_path":         {`fast_path = "auto"`},
		"director.fast_path_devices": {`fast_path_devices = ["eth0"]`},

		"connections.max":                       {"max = 2000"},
		"connections.keep":                      {`keep = ""`},
		"connections.sloppy_tcp":                {"sloppy_tcp = true"},
		"connections.conn_reuse":                {"conn_reuse = 2"},
		"connections.on_removal":                {`on_removal = "drop"`},
		"connections.expire_nodest":             {"expire_nodest = true"},
		"connections.expire_quiescent_template": {"expire_quiescent_template = true"},
		"connections.secure_tcp":                {`secure_tcp = "always"`},
		"connections.half_open_max":             {"half_open_max = 3000"},

		"connections.timeouts.tcp":     {`tcp = "1m"`},
		"connections.timeouts.tcp_fin": {`tcp_fin = "1s"`},
		"connections.timeouts.tcp_syn": {`tcp_syn = "2s"`},
		"connections.timeouts.udp":     {`udp = "3s"`},
		"connections.timeouts.sctp":    {`sctp = "4s"`},

		"notify.command": {`command = ["/bin/true"]`},
		"notify.webhook": {`webhook = "http://192.0.2.1/"`},
		"notify.timeout": {`command = ["/bin/true"]`, `timeout = "1s"`},

		"notify.mail.to":            {`to = "noc@example.com"`},
		"notify.mail.from":          {`from = "director@example.com"`},
		"notify.mail.server":        {`server = "127.0.0.1:587"`},
		"notify.mail.tls":           {`tls = "none"`},
		"notify.mail.ca":            {fmt.Sprintf("ca = %q", cert)},
		"notify.mail.user":          {`user = "lb"`, fmt.Sprintf("password_file = %q", password)},
		"notify.mail.password_file": {`user = "lb"`, fmt.Sprintf("password_file = %q", password)},
		"notify.mail.helo":          {`helo = "lb.example.com"`},
		"notify.mail.kinds":         {`kinds = ["service"]`},
		"notify.mail.services":      {`services = ["web"]`},
		"notify.mail.gather":        {`gather = "1m"`},

		"sync.mode":      {`mode = "ipvs"`, `key = ""`},
		"sync.interface": {`interface = "lo"`},
		"sync.group":     {`group = "224.0.0.82"`},
		"sync.port":      {"port = 8849"},
		"sync.peers":     {`peers = ["10.0.2.9"]`},
		"sync.id":        {"id = 7"},
		"sync.key":       {fmt.Sprintf("key = %q", syncKey+"2")},

		"second_chance.key":       {fmt.Sprintf("key = %q", syncKey+"2")},
		"second_chance.port":      {"port = 8850"},
		"bgp.as":                  {"as = 65011"},
		"bgp.router_id":           {`router_id = "10.0.2.3"`},
		"bgp.listen":              {`listen = "10.0.2.2"`},
		"bgp.graceful_shutdown":   {`graceful_shutdown = "0s"`},
		"bgp.linger":              {`linger = "0s"`},
		"bgp.peer.address":        {`address = "10.0.2.9"`},
		"bgp.peer.as":             {"as = 65001"},
		"bgp.peer.source":         {`source = "10.0.2.2"`},
		"bgp.peer.password":       {`password = "secret"`},
		"bgp.peer.multihop":       {"multihop = 2"},
		"bgp.peer.ttl_security":   {"ttl_security = true"},
		"bgp.peer.hold_time":      {`hold_time = "30s"`},
		"bgp.peer.families":       {`families = ["ipv4"]`},
		"bgp.peer.next_hop":       {`next_hop = "2001:db8::2"`},
		"bgp.peer.bfd.interval":   {`interval = "1s"`},
		"bgp.peer.bfd.multiplier": {"multiplier = 5"},
		"bgp.vip.address":         {`address = "198.51.100.82"`},
		"bgp.vip.med":             {"med = 7"},
		"bgp.vip.local_pref":      {"local_pref = 7"},
		"bgp.vip.communities":     {`communities = ["65010:1"]`},
		"bgp.vip.prepend":         {"prepend = 2"},

		"service.name":            {`name = "site"`},
		"service.announce_when":   {`announce_when = "always"`},
		"service.vip":             {`vip = ["198.51.100.80", "198.51.100.81"]`},
		"service.protocol":        {`protocol = "sctp"`},
		"service.port":            {"port = 8080"},
		"service.scheduler":       {`scheduler = "rr"`},
		"service.scheduler_flags": {`scheduler_flags = ["sh-port"]`},
		"service.order":           {`order = "address"`},
		"service.one_packet":      {`protocol = "udp"`, "one_packet = true"},
		"service.forward":         {`forward = "dr"`},
		"service.encap":           {`encap = "gre"`},
		"service.encap_port":      {`encap = "gue"`, "encap_port = 6081"},
		"service.encap_key":       {`encap = "gre"`, "encap_key = 7"},
		"service.encap_checksum":  {`encap = "gre"`, "encap_checksum = true"},
		"service.quorum":          {"quorum = 2"},
		"service.hysteresis":      {"quorum = 3", "hysteresis = 1"},
		"service.sorry_server":    {`sorry_server = "10.0.2.8"`},
		"service.sorry_forward":   {`sorry_forward = "tun"`, `encap = "gre"`},
		"service.on_failure":      {`on_failure = "drain"`},

		"vrrp.name":          {`name = "VI_2"`},
		"vrrp.interface":     {`interface = "eth1"`},
		"vrrp.router_id":     {"router_id = 52"},
		"vrrp.version":       {"version = 2"},
		"vrrp.priority":      {"priority = 7"},
		"vrrp.interval":      {`interval = "2s"`},
		"vrrp.addresses":     {`addresses = ["198.51.100.80", "10.0.2.77/24 dev eth0"]`},
		"vrrp.excluded":      {`excluded = ["10.0.2.78/24"]`},
		"vrrp.source":        {`source = "10.0.2.2"`},
		"vrrp.preempt":       {"preempt = false"},
		"vrrp.preempt_delay": {`preempt_delay = "5s"`},
		"vrrp.password":      {`password = "secret"`, "version = 2", `key = ""`},
		"vrrp.key":           {fmt.Sprintf("key = %q", otherKey)},
		"vrrp.key_id":        {"key_id = 2"},
		"vrrp.key_mode":      {`key_mode = "permissive"`},
		"vrrp.peers":         {`peers = ["10.0.2.3"]`},
		"vrrp.group":         {`group = "lb"`},
		"vrrp.checksum":      {`checksum = "rfc9568"`},

		"vrrp.track.interface":  {`interface = "eth2"`},
		"vrrp.track.service":    {`service = "web"`, "interface = absent"},
		"vrrp.track.realserver": {`service = "web"`, `realserver = "10.0.11.2"`, "interface = absent"},
		"vrrp.track.gateway":    {`gateway = "10.0.2.1"`, "interface = absent"},
		"vrrp.track.weight":     {"weight = -9"},

		"service.persistence.timeout":  {`timeout = "1m"`},
		"service.persistence.netmask":  {"netmask = 24"},
		"service.persistence.netmask6": {"netmask6 = 64"},

		"service.resolve.srv":      {`srv = "_https._tcp.test"`},
		"service.resolve.interval": {`interval = "5s"`},
		"service.resolve.server":   {`server = "127.0.0.1:5353"`},
		"service.resolve.family":   {`family = "ipv4"`},

		"service.check.type":       {`type = "tcp"`},
		"service.check.via":        {`via = "direct"`},
		"service.check.port":       {"port = 81"},
		"service.check.interval":   {`interval = "7s"`},
		"service.check.timeout":    {`timeout = "1s"`},
		"service.check.rise":       {"rise = 5"},
		"service.check.fall":       {"fall = 5"},
		"service.check.initial":    {`initial = "up"`},
		"service.check.path":       {`path = "/x"`},
		"service.check.host":       {`host = "example.com"`},
		"service.check.status":     {`status = ["204"]`},
		"service.check.body":       {`body = "x"`},
		"service.check.sni":        {`type = "https"`, `sni = "example.com"`},
		"service.check.ca":         {`type = "https"`, `ca = "/etc/ssl/certs/ca-certificates.crt"`},
		"service.check.verify":     {`type = "https"`, "verify = false"},
		"service.check.send":       {`type = "tcp"`, `send = "x"`},
		"service.check.expect":     {`type = "tcp"`, `expect = "x"`},
		"service.check.query":      {`type = "dns"`, `query = "example.com"`},
		"service.check.query_type": {`type = "dns"`, `query = "example.com"`, `query_type = "AAAA"`},
		"service.check.rcode":      {`type = "dns"`, `query = "example.com"`, `rcode = "NXDOMAIN"`},
		"service.check.records":    {`type = "dns"`, `query = "example.com"`, "records = 0"},
		"service.check.send_hex":   {`type = "tcp"`, `send_hex = "00"`},
		"service.check.expect_hex": {`type = "tcp"`, `expect_hex = "0?"`},
		"service.check.cert":       {`type = "https"`, fmt.Sprintf("cert = %q", both)},
		"service.check.key":        {`type = "https"`, fmt.Sprintf("cert = %q", cert), fmt.Sprintf("key = %q", key)},
		"service.check.factor":     {`type = "file"`, `path = "/run/x"`, "factor = 2"},
		"service.check.reverse":    {`type = "file"`, `path = "/run/x"`, "reverse = true"},
		"service.check.helo":       {`type = "smtp"`, `helo = "example.com"`},
		"service.check.command":    {`type = "exec"`, `command = ["/bin/true"]`},

		"wireguard.private_key": {fmt.Sprintf("private_key = %q", filepath.Join(s.dir, "2.key"))},
		"wireguard.listen":      {"listen = 51821"},
		"wireguard.address":     {`address = "10.99.0.9"`},

		"service.realserver.wireguard.public_key": {fmt.Sprintf("public_key = %q", wireguard.Key{5})},
		"service.realserver.wireguard.preshared_key": {fmt.Sprintf("preshared_key = %q",
			filepath.Join(s.dir, "2.key"))},
		"service.realserver.wireguard.endpoint":  {`endpoint = "10.0.11.2:51820"`},
		"service.realserver.wireguard.keepalive": {`keepalive = "25s"`},

		"service.realserver.address":        {`address = "10.0.12.2"`},
		"service.realserver.forward":        {`forward = "nat"`, "encap = absent"},
		"service.realserver.port":           {`forward = "nat"`, "encap = absent", "port = 8080"},
		"service.realserver.weight":         {"weight = 7"},
		"service.realserver.on_failure":     {`on_failure = "drain"`},
		"service.realserver.encap":          {`encap = "ipip"`},
		"service.realserver.encap_key":      {`encap = "gre"`, "encap_key = 8"},
		"service.realserver.encap_checksum": {`encap = "gre"`, "encap_checksum = true"},
		"service.realserver.upper":          {"upper = 9"},
		"service.realserver.lower":          {"upper = 9", "lower = 3"},
	}), restartKeys(t, "director", "A director needs a restart for "))
}

// everyWireGuardKey returns the lines of [wireguard] and of a peer, and makes the files 1.key and 2.key.
func (s *site) everyWireGuardKey() (table, peer []string) {
	s.t.Helper()
	for _, name := range []string{"1.key", "2.key"} {
		key := []byte(wireguard.NewPrivateKey().String())
		if err := os.WriteFile(filepath.Join(s.dir, name), key, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return []string{fmt.Sprintf("private_key = %q", filepath.Join(s.dir, "1.key")), `address = "10.99.0.1"`},
		[]string{fmt.Sprintf("public_key = %q", wireguard.NewPrivateKey().Public())}
}

// addTunnel adds the tables of a tunnel to base, and a bridge to h.
func (s *site) addTunnel(base file, h *lab.Host) {
	s.t.Helper()
	base["tunnel"] = []string{`name = "site-b"`, `encap = "wireguard"`, `local = "10.98.0.1"`, `remote = "10.98.0.2"`}
	base["tunnel.probe"] = []string{`address = "10.8.0.2"`}
	base["tunnel.wireguard"] = []string{fmt.Sprintf("public_key = %q", wireguard.NewPrivateKey().Public())}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br7"
	if err := h.Do(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}) }); err != nil {
		s.t.Fatal(err)
	}
}

// withTunnelKeys adds the changes of the keys of that tunnel.
func (s *site) withTunnelKeys(changes map[string][]string) map[string][]string {
	maps.Copy(changes, map[string][]string{
		"tunnel.name":       {`name = "site-c"`},
		"tunnel.device":     {`device = "tap"`},
		"tunnel.encap":      {`encap = "gre"`},
		"tunnel.local":      {`local = "10.98.0.3"`},
		"tunnel.remote":     {`remote = "10.98.0.3"`},
		"tunnel.addresses":  {`addresses = ["10.8.0.1/30", "fd08::1/64"]`},
		"tunnel.routes":     {`routes = ["10.20.0.0/16"]`},
		"tunnel.key":        {`encap = "gre"`, "key = 7"},
		"tunnel.encap_port": {`encap = "gue"`, "encap_port = 6083"},
		"tunnel.bridge":     {`device = "tap"`, `bridge = "br7"`},
		"tunnel.mtu":        {"mtu = 1300"},
		"tunnel.mss":        {`mss = "off"`},

		"tunnel.probe.address":  {`address = "10.8.0.3"`},
		"tunnel.probe.interval": {`interval = "1s"`},

		"tunnel.wireguard.public_key": {fmt.Sprintf("public_key = %q", wireguard.Key{6})},
		"tunnel.wireguard.preshared_key": {fmt.Sprintf("preshared_key = %q",
			filepath.Join(s.dir, "2.key"))},
		"tunnel.wireguard.endpoint":  {`endpoint = "10.0.11.9:51820"`},
		"tunnel.wireguard.keepalive": {`keepalive = "25s"`},
	})
	return changes
}

// TestReloadOfEveryKeyOfAgent is the same for an agent.
func TestReloadOfEveryKeyOfAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	p := s.prepare(s.Webs[0], "realserver")
	base := file{"realserver": {`vips = ["198.51.100.80"]`, `directors = ["10.0.2.2", "10.0.2.3"]`,
		fmt.Sprintf("control = %q", p.socket), `encap = ["ipip", "gre", "gue", "wireguard"]`, `fast_path = "off"`}}
	base["wireguard"], base["wireguard.peer"] = s.everyWireGuardKey()
	base["wireguard.peer"] = append(base["wireguard.peer"], `address = "10.0.2.2"`)
	s.addTunnel(base, s.Webs[0])
	for _, name := range []string{"1.chance", "2.chance"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(strings.Repeat(name, 32)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	chance := fmt.Sprintf("key = %q", filepath.Join(s.dir, "1.chance"))
	base["second_chance"] = []string{"enabled = true", `peers = ["10.0.11.0/24"]`, chance}
	tables := []string{"realserver", "second_chance", "wireguard", "wireguard.peer", "tunnel", "tunnel.probe",
		"tunnel.wireguard"}
	p.configure(base.toml(tables...))
	p.start()
	p.mustChangeEach(base, tables, s.withTunnelKeys(map[string][]string{
		"realserver.tun":        {`tun = "vs7"`},
		"realserver.queues":     {"queues = 7"},
		"realserver.offload":    {`offload = "off"`},
		"realserver.vips":       {`vips = ["198.51.100.81"]`},
		"realserver.own_vips":   {"own_vips = false"},
		"realserver.directors":  {`directors = ["10.0.2.0/24"]`},
		"realserver.encap":      {`encap = ["ipip", "gre", "wireguard"]`},
		"realserver.encap_port": {"encap_port = 6081"},
		"realserver.encap_key":  {"encap_key = 7"},
		"realserver.mss":        {"mss = 1000"},
		"realserver.table":      {"table = 30324"},
		"realserver.control":    {`control = "/run/vstun/other.sock"`},
		"realserver.metrics":    {`metrics = "127.0.0.1:9465"`}, "realserver.log": {`log = "debug"`},
		"realserver.fast_path": {`fast_path = "auto"`},

		"realserver.fast_path_devices": {`fast_path_devices = ["eth0"]`},

		"second_chance.enabled": {"enabled = false"},
		"second_chance.peers":   {`peers = ["10.0.12.0/24"]`},
		"second_chance.key":     {fmt.Sprintf("key = %q", filepath.Join(s.dir, "2.chance"))},
		"second_chance.port":    {"port = 8850"},

		"wireguard.private_key":        {fmt.Sprintf("private_key = %q", filepath.Join(s.dir, "2.key"))},
		"wireguard.listen":             {"listen = 51821"},
		"wireguard.address":            {`address = "10.99.0.2"`},
		"wireguard.peer.address":       {`address = "10.0.2.3"`},
		"wireguard.peer.public_key":    {fmt.Sprintf("public_key = %q", wireguard.Key{5})},
		"wireguard.peer.preshared_key": {fmt.Sprintf("preshared_key = %q", filepath.Join(s.dir, "2.key"))},
		"wireguard.peer.endpoint":      {`endpoint = "10.0.2.2:51820"`},
		"wireguard.peer.keepalive":     {`keepalive = "25s"`},
	}), restartKeys(t, "realserver", "An agent needs a restart for "))
}
