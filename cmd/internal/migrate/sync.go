package migrate

import (
	"net/netip"
	"strconv"

	"vstun/cmd/internal/config"
)

// syncDaemon is the source of [sync]: keepalived's lvs_sync_daemon, or ipvsadm's --start-daemon.
type syncDaemon struct {
	Place
	device   string // "": none
	instance string // whose virtual_router_id is the ID; "": none
	id       int
	hasID    bool
	port     int        // 0: the default
	group    netip.Addr // the zero value: the default
}

// syncOptions are the words of lvs_sync_daemon that a value follows.
var syncOptions = map[string]func(k *keepalived, d *syncDaemon, st *statement, value string){
	"inst": func(_ *keepalived, d *syncDaemon, _ *statement, value string) { d.instance = value },
	"id": func(k *keepalived, d *syncDaemon, st *statement, value string) {
		d.id, d.hasID = k.syncNumber(st.Place, "id", value, 0, 255)
	},
	"port": func(k *keepalived, d *syncDaemon, st *statement, value string) {
		d.port, _ = k.syncNumber(st.Place, "port", value, leastSyncPort, 65535)
	},
	"group": func(k *keepalived, d *syncDaemon, st *statement, value string) {
		d.group = k.syncGroupAddress(st.Place, value)
	},
	"ttl": func(k *keepalived, _ *syncDaemon, st *statement, value string) {
		k.note(st.Place, "lvs_sync_daemon: ttl %s: no counterpart: left out: write peers in [sync], where routers lie "+
			"between the directors", value)
	},
	"maxlen": func(k *keepalived, _ *syncDaemon, st *statement, value string) {
		k.note(st.Place, "lvs_sync_daemon: maxlen %s: %s: datagrams have at most 1472 bytes", value, noneNeeded)
	},
}

// leastSyncPort is the least port that the director may use after it has given its rights up.
const leastSyncPort = 1024

// syncDaemon reads lvs_sync_daemon: "eth0 inst VI_1 id 51 port 8848".
func (k *keepalived) syncDaemon(st *statement) {
	d := syncDaemon{Place: st.Place, device: st.arg(1)}
	for i := 2; i < len(st.words); i++ {
		w := st.words[i]
		read := syncOptions[w]
		_, err := strconv.Atoi(w)
		switch {
		case read != nil:
			i++
			read(k, &d, st, st.arg(i))
		case err == nil:
			syncOptions["id"](k, &d, st, w)
		case i == 2:
			d.instance = w
		default:
			k.note(st.Place, "lvs_sync_daemon: %q: unknown: left out: want inst, id, port, ttl, group or maxlen", w)
		}
	}
	k.setSync(d, st.name())
}

// syncInterface reads lvs_sync_daemon_interface of an instance, the former form of lvs_sync_daemon.
func (k *keepalived) syncInterface(v *instance, st *statement) {
	k.setSync(syncDaemon{Place: st.Place, device: st.arg(1), instance: v.title}, st.name())
}

// setSync sets the source of [sync]. As in keepalived, the first one stays.
func (p *plan) setSync(d syncDaemon, what string) {
	switch {
	case !config.IsDevice(d.device):
		p.note(d.Place, "%s %q: is no name of a device: left out: write [sync] with interface", what, d.device)
	case p.sync.device != "":
		p.note(d.Place, "%s %s: that of line %d is taken: left out: keep one of them", what, d.device, p.sync.Line)
	default:
		p.sync = d
	}
}

// syncNumber reads a number of lvs_sync_daemon.
func (p *plan) syncNumber(at Place, what, text string, least, most int) (n int, ok bool) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		p.note(at, "sync daemon's %s %q: left out: want %d to %d", what, text, least, most)
		return 0, false
	}
	return n, true
}

// syncGroupAddress reads the multicast group.
func (p *plan) syncGroupAddress(at Place, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
		p.note(at, "sync daemon's group %q: is no multicast address: left out: write group in [sync]", text)
		return netip.Addr{}
	}
	return a
}

// settleSync gives [sync] the ID of its instance.
func (p *plan) settleSync(byTitle map[string]*instance) {
	d := &p.sync
	if d.device == "" || d.instance == "" {
		return
	}
	v := byTitle[d.instance]
	switch {
	case v == nil:
		p.note(d.Place, "lvs_sync_daemon: there is no vrrp_instance %s: its virtual_router_id is not the ID: write "+
			"id in "+
			"[sync]", d.instance)
	case !d.hasID:
		d.id = int(v.routerID)
	}
}

// Defaults of [sync], which IPVS has, too.
const usualSyncPort = 8848

var usualSyncGroup = netip.AddrFrom4([4]byte{224, 0, 0, 81})

// keys returns the keys of [sync].
func (d *syncDaemon) keys() (keys []key) {
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	add("mode", quote("ipvs"))
	add("interface", quote(d.device))
	if d.group.IsValid() && d.group != usualSyncGroup {
		add("group", quote(d.group.String()))
	}
	if d.port != 0 && d.port != usualSyncPort {
		add("port", strconv.Itoa(d.port))
	}
	if d.id != 0 {
		add("id", strconv.Itoa(d.id))
	}
	return keys
}

// startDaemon reads ipvsadm's --start-daemon. The director sends and takes, as master and backup together do.
func (p *ipvsadm) startDaemon(at Place, r rule) {
	d := syncDaemon{Place: at, device: r.options["mcast-interface"]}
	if r.has("syncid") {
		d.id, d.hasID = p.syncNumber(at, "syncid", r.options["syncid"], 0, 255)
	}
	if r.has("mcast-port") {
		d.port, _ = p.syncNumber(at, "mcast-port", r.options["mcast-port"], leastSyncPort, 65535)
	}
	if r.has("mcast-group") {
		d.group = p.syncGroupAddress(at, r.options["mcast-group"])
	}
	for _, name := range []string{"mcast-ttl", "sync-maxlen"} {
		if r.has(name) {
			p.note(at, "--%s: no counterpart: left out", name)
		}
	}
	same := d
	same.Place = p.sync.Place
	if d.device != "" && same == p.sync {
		return // of the other role
	}
	p.setSync(d, "--start-daemon")
}
