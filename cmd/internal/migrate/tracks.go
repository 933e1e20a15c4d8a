package migrate

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/routing/vrrp"
)

// track is a future track of an instance: a device, or a gateway that a script pings.
type track struct {
	Place
	device  string     // "": a gateway
	gateway netip.Addr // a track if it is in a subnet of the instance's addresses
	script  string     // its name and command, for notes
	weight  int
}

// syncGroup is a vrrp_sync_group. Its tracks and scripts are those of its members.
type syncGroup struct {
	Place
	name    string
	members []*statement // names of instances
	tracks  []track
	weights bool // sync_group_tracking_weight: the members' own tracks have weights
	scripts []script
	alert   *bool // its own smtp_alert; nil: not set
	first   *instance
}

// groupKeywords are the keywords of a vrrp_sync_group that are not about scripts.
var groupKeywords = map[string]func(*keepalived, *syncGroup, *statement){
	"group": func(k *keepalived, g *syncGroup, st *statement) {
		if g.members != nil {
			k.note(st.Place, "group of vrrp_sync_group %s: is there twice: the first one is taken, as by keepalived: "+
				"write one list", g.name)
			return
		}
		g.members = st.block
	},
	"track_interface": func(k *keepalived, g *syncGroup, st *statement) { k.trackInterfaces(nil, st, &g.tracks) },
	"track_script":    func(k *keepalived, g *syncGroup, st *statement) { k.trackScripts(nil, st, &g.tracks) },
	"track_file":      func(k *keepalived, _ *syncGroup, st *statement) { trackNothing(k, nil, st) },
	"track_process":   func(k *keepalived, _ *syncGroup, st *statement) { trackNothing(k, nil, st) },
	"track_bfd":       func(k *keepalived, _ *syncGroup, st *statement) { trackNothing(k, nil, st) },

	"sync_group_tracking_weight": func(_ *keepalived, g *syncGroup, _ *statement) { g.weights = true },
	"global_tracking":            func(_ *keepalived, g *syncGroup, _ *statement) { g.weights = true },
	"smtp_alert":                 func(k *keepalived, g *syncGroup, st *statement) { k.setAlert(nil, st, &g.alert) },

	"notify_master":  func(k *keepalived, g *syncGroup, st *statement) { k.groupScript(g, st, vrrp.Master) },
	"notify_backup":  func(k *keepalived, g *syncGroup, st *statement) { k.groupScript(g, st, vrrp.Backup) },
	"notify_fault":   func(k *keepalived, g *syncGroup, st *statement) { k.groupScript(g, st, vrrp.Fault) },
	"notify":         func(k *keepalived, g *syncGroup, st *statement) { k.groupScript(g, st, anyRole...) },
	"notify_stop":    func(k *keepalived, _ *syncGroup, st *statement) { noCounterpart(noStop)(k, nil, st) },
	"notify_deleted": func(k *keepalived, _ *syncGroup, st *statement) { noCounterpart(noStop)(k, nil, st) },
	"notify_priority_changes": func(k *keepalived, _ *syncGroup, st *statement) {
		noCounterpart(noneNeeded)(k, nil,
			st)
	},
}

// vrrpGroup reads a vrrp_sync_group.
func (k *keepalived) vrrpGroup(block *statement) {
	name := printable(block.arg(1))
	if name == "" || k.groupNames[name] {
		k.note(block.Place, "vrrp_sync_group %q: has no name of its own: left out, as by keepalived: write one behind "+
			"it", name)
		return
	}
	g := &syncGroup{Place: block.Place, name: name}
	for _, st := range block.block {
		if read, ok := groupKeywords[st.name()]; ok {
			read(k, g, st)
			continue
		}
		k.note(st.Place, "%s: unknown to this program: left out: look into keepalived.conf(5) for what it does",
			st.name())
	}
	k.syncGroups, k.groupNames[name] = append(k.syncGroups, g), true
}

// joinGroups gives the instances their groups, once all blocks are read.
func (k *keepalived) joinGroups() {
	for _, g := range k.syncGroups {
		for _, line := range g.members {
			for _, title := range line.words {
				switch v := k.byTitle[title]; {
				case !k.spend(line.Place, addressWork*(1+len(g.tracks))):
					return
				case v == nil:
					k.note(line.Place, "vrrp_sync_group %s: there is no vrrp_instance %s: left out", g.name, title)
				case v.group != nil:
					k.noteOn(v, line.Place, "vrrp_sync_group %s: %s is in %s already: left out, as by keepalived: "+
						"keep "+
						"one of them", g.name, title, v.group.name)
				default:
					v.group = g
					k.joinGroup(v)
				}
			}
		}
	}
}

// joinGroup gives an instance the tracks of its group, and the first one its scripts. As in keepalived its own tracks
// have no weights.
func (k *keepalived) joinGroup(v *instance) {
	v.tracks = slices.DeleteFunc(v.tracks, func(t track) bool {
		ignored := t.device == "" && t.weight != 0 && !v.group.weights
		if ignored {
			k.noteOn(v, t.Place, "track_script %s: keepalived ignores it with a weight in a vrrp_sync_group, and so "+
				"does the import", t.script)
		}
		return ignored
	})
	for i, t := range v.tracks {
		if t.weight != 0 && !v.group.weights {
			k.noteOn(v, t.Place, "track_interface %s: keepalived ignores the weight in a vrrp_sync_group: so does the "+
				"import: without a link it is a fault", t.device)
			v.tracks[i].weight = 0
		}
	}
	v.tracks = append(v.tracks, v.group.tracks...)
	if v.group.first == nil {
		v.group.first = v
		for _, s := range v.group.scripts {
			s.instance = v
			k.scripts = append(k.scripts, s)
		}
	}
}

// trackInterfaces reads track_interface: "eth1 weight -20 reverse".
func (k *keepalived) trackInterfaces(v *instance, block *statement, to *[]track) {
	for _, st := range block.block {
		t := track{Place: st.Place, device: st.name()}
		if !config.IsDevice(t.device) {
			k.noteOn(v, st.Place, "track_interface %q: is no name of a device: left out", t.device)
			continue
		}
		weight, reverse := trackWeight(st)
		n, err := strconv.Atoi(weight)
		switch {
		case weight != "" && (err != nil || n < -253 || n > 253):
			k.noteOn(v, st.Place, "track_interface %s: weight %q: left out: want -253 to 253", t.device, weight)
			continue
		case reverse:
			k.noteOn(v, st.Place, "track_interface %s: reverse: no counterpart: left out: track it at the other "+
				"director", t.device)
			continue
		}
		t.weight = n
		*to = append(*to, t)
	}
}

// trackWeight returns what stands behind weight in a line of a track, and whether reverse does.
func trackWeight(st *statement) (weight string, reverse bool) {
	if i := slices.Index(st.words, "weight"); i > 0 {
		weight = st.arg(i + 1)
	}
	return weight, slices.Contains(st.words[1:], "reverse")
}

// vrrpScript is a vrrp_script.
type vrrpScript struct {
	of      *statement
	command []string
	used    bool
}

func (k *keepalived) defineScript(block *statement) {
	if k.vrrpScripts[block.arg(1)] != nil {
		k.note(block.Place, "vrrp_script %s: is there twice: the last one is taken: rename one", block.arg(1))
	}
	s := &vrrpScript{of: block}
	if st := block.find("script"); st != nil {
		first, others := st.rest()
		s.command = append(shellWords(first), others...)
	}
	k.vrrpScripts[block.arg(1)] = s
}

// trackScripts reads track_script. The director runs no scripts for that. It tracks a gateway, which a script with ping
// looks at.
func (k *keepalived) trackScripts(v *instance, block *statement, to *[]track) {
	list := block.block
	if block.arg(1) != "" { // "track_script NAME" is one of keepalived's forms
		list = append(slices.Clone(list), &statement{Place: block.Place, text: block.text, words: block.words[1:]})
	}
	for _, st := range list {
		s := k.vrrpScripts[st.name()]
		if s == nil {
			k.noteOn(v, st.Place, "track_script %s: there is no vrrp_script of this name: left out, as by keepalived",
				st.name())
			continue
		}
		s.used = true
		t := s.track(st)
		if t.gateway.IsValid() {
			*to = append(*to, t)
			continue
		}
		k.noteOn(v, st.Place, "track_script %s: no counterpart: left out: track = [{ service = NAME%s }], or its "+
			"realserver, by whose check of type exec the script can run", t.script, t.weightKey())
	}
}

// track returns the track of a line of track_script. It has a gateway if the script pings an address.
func (s *vrrpScript) track(st *statement) track {
	t := track{Place: st.Place, script: st.name()}
	if len(s.command) > 0 {
		t.script += ": " + strings.Join(s.command, " ")
	}
	weight, reverse := trackWeight(st)
	if in := s.of.find("weight"); weight == "" && in != nil {
		weight, reverse = in.arg(1), reverse || in.arg(2) == "reverse"
	}
	if n, err := strconv.Atoi(weight); err == nil && n >= -253 && n <= 253 {
		t.weight = n
	}
	pings := len(s.command) > 0 && slices.Contains([]string{"ping", "ping6", "fping", "arping"},
		filepath.Base(s.command[0]))
	if !pings || reverse {
		return t
	}
	for _, w := range s.command[1:] {
		if a, err := unicast(w); err == nil {
			t.gateway = a
		}
	}
	return t
}

// weightKey returns the end of a track in TOML.
func (t *track) weightKey() string {
	if t.weight == 0 {
		return ""
	}
	return ", weight = " + strconv.Itoa(t.weight)
}

// key returns the track in TOML.
func (t *track) key() string {
	if t.device == "" {
		return "{ gateway = " + quote(t.gateway.String()) + t.weightKey() + " }"
	}
	return "{ interface = " + quote(t.device) + t.weightKey() + " }"
}

// trackNothing notes tracks without a counterpart.
func trackNothing(k *keepalived, v *instance, block *statement) {
	for _, st := range block.block {
		if f := k.files[st.name()]; f != nil && block.name() == "track_file" {
			f.used = true
		}
		k.noteOn(v, st.Place, "%s %s: no counterpart: left out: track = [{ service = NAME }], or its realserver, with "+
			"a check of type file or exec", block.name(), st.name())
	}
}
