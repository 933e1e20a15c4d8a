package migrate

import "strings"

// script is one of keepalived's notify_up, notify_down, quorum_up and quorum_down.
type script struct {
	Place
	of         *service
	realserver *realserver // nil: the service's quorum
	state      string      // "up" or "down"
	command    []string
}

// script records the script that a statement names. Without a realserver the script is the service's.
func (k *keepalived) script(s *service, st *statement, realserver *realserver, state string) {
	first, others := st.rest()
	command := shellWords(first)
	if !isCommand(command) {
		k.noteOf(s, st.Place, "%s %q: is no command with an absolute path: left out: write command in [notify]",
			st.name(), first)
		return
	}
	if len(others) > 0 {
		k.noteOf(s, st.Place, "%s runs as %s: no counterpart: commands run as the director's user: let the command "+
			"change it (setpriv, runuser)", st.name(), strings.Join(others, " "))
	}
	k.scripts = append(k.scripts, script{st.Place, s, realserver, state, command})
}

// maxDispatcher is a little less than the longest argument of a command, 128 KiB: MAX_ARG_STRLEN in the kernel's
// include/uapi/linux/binfmts.h.
const maxDispatcher = 120 << 10

// dispatcher returns a shell script that runs the script of the changed service or realserver. Its arguments are those
// of [notify]: kind, service, realserver or "-", old state, new state. It returns "" if there is no script, or if there
// are too many.
func (p *plan) dispatcher() string {
	type subject struct {
		*service
		*realserver // nil: the service
	}
	kept := map[subject]bool{}
	for _, s := range p.services {
		kept[subject{s, nil}] = true
		for _, r := range s.realservers {
			kept[subject{s, r}] = true
		}
	}
	var b strings.Builder
	for _, s := range p.scripts {
		kind, name := "service", "-"
		if s.realserver != nil {
			kind, name = "realserver", s.realserver.name()
		}
		if !kept[subject{s.of, s.realserver}] {
			continue // its service or realserver has been left out
		}
		var words []string
		for _, w := range s.command {
			words = append(words, shellQuote(w))
		}
		b.WriteString("\"" + strings.Join([]string{kind, s.of.name, name, s.state}, " ") + "\") exec " +
			strings.Join(words, " ") + " ;;\n")
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

// shellQuote quotes a word for a shell, if needed.
func shellQuote(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_"
	safe := word != "" && strings.IndexFunc(word, func(r rune) bool { return !strings.ContainsRune(plain, r) }) < 0
	if safe {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
