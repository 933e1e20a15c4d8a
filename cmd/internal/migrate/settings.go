package migrate

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// settings are what a virtual_server says for its real_servers, and these for their checks.
type settings struct {
	delay      time.Duration // delay_loop
	timeout    time.Duration // connect_timeout
	retry      int           // -1: the checker's default
	leastRetry int           // that keepalived takes
	retryDelay time.Duration // 0: the checker's default
	alpha      bool          // down until a check says otherwise
	inhibit    bool
	host       string // virtualhost
	weight     int
	tunnel     tunnel
}

// settingKeywords are those of settings. A block that does not know one has keepalived ignore it.
var settingKeywords = map[string]struct {
	read func(*keepalived, *service, *statement, *settings)
	in   []string // the blocks that know it, beside virtual_server and real_server; checking: each checker with settings
	only bool     // not virtual_server and real_server
}{
	"delay_loop":         {func(k *keepalived, s *service, st *statement, t *settings) { k.timer(s, st, &t.delay) }, checking, false},
	"connect_timeout":    {func(k *keepalived, s *service, st *statement, t *settings) { k.timer(s, st, &t.timeout) }, connecting, false},
	"delay_before_retry": {func(k *keepalived, s *service, st *statement, t *settings) { k.timer(s, st, &t.retryDelay) }, checking, false},
	"retry":              {(*keepalived).retry, checking, false},
	"nb_get_retry":       {(*keepalived).retry, []string{"HTTP_GET", "SSL_GET"}, true},
	"nb_sock_retry":      {nil, nil, true},
	"nb_gethost_retry":   {nil, nil, true},
	"warmup":             {(*keepalived).warmup, checking, false},
	"alpha":              {func(_ *keepalived, _ *service, st *statement, t *settings) { t.alpha = isTrue(st.arg(1)) }, checking, false},
	"inhibit_on_failure": {func(_ *keepalived, _ *service, st *statement, t *settings) { t.inhibit = isTrue(st.arg(1)) }, nil, false},
	"virtualhost":        {func(_ *keepalived, _ *service, st *statement, t *settings) { t.host, _ = st.rest() }, []string{"HTTP_GET", "SSL_GET"}, false},
}

var (
	connecting = []string{"HTTP_GET", "SSL_GET", "TCP_CHECK", "SMTP_CHECK", "DNS_CHECK", "UDP_CHECK", "PING_CHECK"}
	checking   = append(slices.Clip(connecting), "MISC_CHECK")
)

// read takes a statement of that block, if it is one of these.
func (t *settings) read(k *keepalived, s *service, block string, st *statement) bool {
	if k.ignores(s, block, st) {
		return true
	}
	keyword, ok := settingKeywords[st.name()]
	if ok {
		keyword.read(k, s, st, t)
	}
	return ok
}

// checkerKeywords are those that checkers alone have in common, and which know them.
var checkerKeywords = map[string][]string{"connect_ip": connecting, "connect_port": connecting, "bindto": connecting, "bind_if": connecting, "bind_port": connecting,
	"fwmark": connecting, "log_all_failures": checking}

// ignores reports whether keepalived ignores a statement since the block does not know its keyword, and notes it.
func (k *keepalived) ignores(s *service, block string, st *statement) bool {
	known, ofCheckers := checkerKeywords[st.name()]
	if !ofCheckers {
		keyword, ok := settingKeywords[st.name()]
		if !ok {
			return false
		}
		if known = keyword.in; !keyword.only {
			known = append([]string{"virtual_server", "real_server"}, known...)
		}
	}
	if slices.Contains(known, block) {
		return false
	}
	where := "nowhere any more"
	if len(known) > 0 {
		where = "in " + strings.Join(known, " and ") + " only"
	}
	k.noteOf(s, st.Place, "%s of %s: keepalived knows it %s, and ignores it here: so does the import: take it out", st.name(), block, where)
	return true
}

func (k *keepalived) retry(s *service, st *statement, t *settings) {
	n, err := strconv.ParseUint(st.arg(1), 10, 16)
	if err != nil || int(n) < t.leastRetry {
		k.noteOf(s, st.Place, "%s %q: is no number of retries here: left out, as by keepalived: write fall in the check", st.name(), st.arg(1))
		return
	}
	t.retry = int(n)
}

func (k *keepalived) warmup(s *service, st *statement, _ *settings) {
	k.noteOf(s, st.Place, "warmup: no counterpart, and none needed: the first checks are spread by themselves")
}

// isTrue reads a BOOL, which may be missing.
func isTrue(text string) bool { return !slices.Contains([]string{"off", "false", "no"}, text) }

// timer reads seconds, which may have a fraction.
func (k *keepalived) timer(s *service, st *statement, to *time.Duration) {
	const most = 24 * time.Hour
	f, err := strconv.ParseFloat(st.arg(1), 64)
	if err != nil || f < 0 || f != f || f > most.Seconds() {
		k.noteOf(s, st.Place, "%s %q: is no number of seconds: left out: write it in the check", st.name(), st.arg(1))
		return
	}
	*to = time.Duration(f * float64(time.Second)).Round(time.Millisecond)
}
