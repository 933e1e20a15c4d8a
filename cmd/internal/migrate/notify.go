package migrate

import (
	"slices"
	"strconv"
	"strings"

	"vstun/routing/vrrp"
)

// script is one of keepalived's notify_up, notify_down, quorum_up and quorum_down, or of an instance's notify scripts.
type script struct {
	Place
	of         *service
	realserver *realserver // nil: the service's quorum
	instance   *instance   // of VRRP; nil: of is set
	state      string      // "up", "down" or a role
	command    []string
	role       bool // the command gets keepalived's arguments of notify: INSTANCE, its name, the role, the priority
	group      bool // they are of the instance's group
}

// script records the script that a statement names. Without a realserver the script is the service's.
func (k *keepalived) script(s *service, st *statement, realserver *realserver, state string) {
	command, user := scriptOf(st)
	if command == nil {
		k.noteOf(s, st.Place, noCommand, st.name(), firstOf(st))
		return
	}
	if user != "" {
		k.noteOf(s, st.Place, noUser, st.name(), user)
	}
	k.scripts = append(k.scripts, script{Place: st.Place, of: s, realserver: realserver, state: state,
		command: command})
}

const (
	noCommand = "%s %q: is no command with an absolute path: left out: write command in [notify]"
	noUser    = "%s runs as %s: no counterpart: commands run as the director's user: let the command change it " +
		"(setpriv, runuser)"
)

// scriptOf returns the command of a statement, nil if it is none, and the user and group that it runs as.
func scriptOf(st *statement) (command []string, user string) {
	first, others := st.rest()
	if command = shellWords(first); !isCommand(command) {
		return nil, ""
	}
	return command, strings.Join(others, " ")
}

func firstOf(st *statement) string {
	first, _ := st.rest()
	return first
}

// anyRole are the roles whose changes a script of keepalived's notify gets.
var anyRole = []vrrp.Role{vrrp.Master, vrrp.Backup, vrrp.Fault}

// roleScript records the script of an instance for these roles.
func (k *keepalived) roleScript(v *instance, st *statement, roles ...vrrp.Role) {
	k.scripts = append(k.scripts, k.roleScripts(v, st, roles)...)
}

// groupScript records the script of a group for these roles.
func (k *keepalived) groupScript(g *syncGroup, st *statement, roles ...vrrp.Role) {
	for _, s := range k.roleScripts(nil, st, roles) {
		s.group = true
		g.scripts = append(g.scripts, s)
	}
}

func (k *keepalived) roleScripts(v *instance, st *statement, roles []vrrp.Role) (all []script) {
	command, user := scriptOf(st)
	if command == nil {
		k.noteOn(v, st.Place, noCommand, st.name(), firstOf(st))
		return nil
	}
	if user != "" {
		k.noteOn(v, st.Place, noUser, st.name(), user)
	}
	for _, role := range roles {
		all = append(all, script{Place: st.Place, instance: v, state: role.String(), command: command,
			role: len(roles) > 1})
	}
	return all
}

// maxDispatcher is a little less than the longest argument of a command, 128 KiB: MAX_ARG_STRLEN in the kernel's
// include/uapi/linux/binfmts.h.
const maxDispatcher = 120 << 10

// dispatcher returns a shell script that runs the scripts of the changed service, realserver or instance. Its arguments
// are those of [notify]: kind, service or instance, realserver or "-", old state, new state. It returns "" if there is
// no script, or if there are too many.
func (p *plan) dispatcher() string {
	type subject struct {
		*service
		*realserver // nil: the service
		*instance
	}
	kept := map[subject]bool{}
	for _, s := range p.services {
		kept[subject{service: s}] = true
		for _, r := range s.realservers {
			kept[subject{service: s, realserver: r}] = true
		}
	}
	for _, v := range p.instances {
		kept[subject{instance: v}] = true
	}
	var order []string                // of changes
	commands := map[string][]string{} // by change
	for _, s := range p.scripts {
		if !kept[subject{s.of, s.realserver, s.instance}] {
			continue // its service, realserver or instance has been left out
		}
		change := s.change()
		if commands[change] == nil {
			order = append(order, change)
		}
		if s.instance != nil || commands[change] == nil {
			commands[change] = append(commands[change], s.line())
		}
	}
	var b strings.Builder
	for _, change := range order {
		all := commands[change]
		last := len(all) - 1
		b.WriteString("\"" + change + "\") " + strings.Join(append(all[:last], "exec "+all[last]), "; ") + " ;;\n")
	}
	if b.Len() == 0 {
		return ""
	}
	if b.Len() > maxDispatcher {
		p.note(p.scripts[0].Place, "this script and %d others: too much for one command: left out: write a script "+
			"that looks at its arguments, and its name as command in [notify]", len(p.scripts)-1)
		return ""
	}
	return "case \"$1 $2 $3 $5\" in\n" + b.String() + "esac\n"
}

// change returns the arguments of [notify] that the script is for, without the old state.
func (s *script) change() string {
	switch {
	case s.instance != nil:
		return "vrrp " + s.instance.name + " - " + s.state
	case s.realserver != nil:
		return "realserver " + s.of.name + " " + s.realserver.name() + " " + s.state
	}
	return "service " + s.of.name + " - " + s.state
}

// line returns the command for a shell. A script of keepalived's notify gets the configured priority.
func (s *script) line() string {
	words := slices.Clone(s.command)
	role := strings.ToUpper(s.state)
	switch {
	case s.role && s.group:
		words = append(words, "GROUP", s.instance.group.name, role, "0")
	case s.role:
		words = append(words, "INSTANCE", s.instance.title, role, strconv.Itoa(int(s.instance.priority)))
	}
	for i, w := range words {
		words[i] = shellQuote(w)
	}
	return strings.Join(words, " ")
}

// shellQuote quotes a word for a shell, if needed.
func shellQuote(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_"
	safe := word != "" && strings.IndexFunc(word, func(r rune) bool { return !strings.ContainsRune(plain, r) }) < 0
	if safe {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
