package migrate

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// settings are the defaults of a virtual_server for its real_servers, or of a real_server for its checks.
type settings struct {
	delay      time.Duration // delay_loop
	timeout    time.Duration // connect_timeout
	retry      int           // -1: the checker's default
	leastRetry int           // the least number that keepalived accepts
	retryDelay time.Duration // 0: the checker's default
	alpha      bool          // realservers are down before the first results
	inhibit    bool
	host       string // virtualhost
	weight     int
	tunnel     tunnel
}

// Groups of blocks that know the same general keywords.
var (
	servers    = []string{"virtual_server", "real_server"}
	httpChecks = []string{"HTTP_GET", "SSL_GET"}
	connecting = append(slices.Clip(httpChecks), "TCP_CHECK", "SMTP_CHECK", "DNS_CHECK", "UDP_CHECK", "PING_CHECK")
	checking   = append(slices.Clip(connecting), "MISC_CHECK")
)

// knownIn maps a general keyword to the blocks that know it. keepalived ignores the keyword in other blocks.
var knownIn = map[string][]string{
	"delay_loop":         slices.Concat(servers, checking),
	"connect_timeout":    slices.Concat(servers, connecting),
	"delay_before_retry": slices.Concat(servers, checking),
	"retry":              slices.Concat(servers, checking),
	"nb_get_retry":       httpChecks,
	"nb_sock_retry":      nil,
	"nb_gethost_retry":   nil,
	"warmup":             slices.Concat(servers, checking),
	"alpha":              slices.Concat(servers, checking),
	"inhibit_on_failure": servers,
	"virtualhost":        slices.Concat(servers, httpChecks),
	"connect_ip":         connecting,
	"connect_port":       connecting,
	"bindto":             connecting,
	"bind_if":            connecting,
	"bind_port":          connecting,
	"fwmark":             connecting,
	"log_all_failures":   checking,
}

// read reads a statement of a block. It reports whether the statement is a setting, or one that keepalived ignores
// there.
func (t *settings) read(k *keepalived, s *service, block string, st *statement) bool {
	if k.ignores(s, block, st) {
		return true
	}
	switch st.name() {
	case "delay_loop":
		k.timer(s, st, &t.delay)
	case "connect_timeout":
		k.timer(s, st, &t.timeout)
	case "delay_before_retry":
		k.timer(s, st, &t.retryDelay)
	case "retry", "nb_get_retry":
		k.retry(s, st, t)
	case "warmup":
		k.noteOf(s, st.Place, "warmup: no counterpart, and none needed: the first checks are spread by themselves")
	case "alpha":
		t.alpha = isTrue(st.arg(1))
	case "inhibit_on_failure":
		t.inhibit = isTrue(st.arg(1))
	case "virtualhost":
		t.host, _ = st.rest()
	default:
		return false
	}
	return true
}

// ignores reports, and notes, whether keepalived ignores a statement because the block does not know its keyword.
func (k *keepalived) ignores(s *service, block string, st *statement) bool {
	known, general := knownIn[st.name()]
	if !general || slices.Contains(known, block) {
		return false
	}
	where := "nowhere any more"
	if len(known) > 0 {
		where = "in " + strings.Join(known, " and ") + " only"
	}
	k.noteOf(s, st.Place, "%s of %s: keepalived knows it %s, and ignores it here: so does the import: take it out",
		st.name(), block, where)
	return true
}

// retry reads a number of retries.
func (k *keepalived) retry(s *service, st *statement, t *settings) {
	n, err := strconv.ParseUint(st.arg(1), 10, 16)
	if err != nil || int(n) < t.leastRetry {
		k.noteOf(s, st.Place, "%s %q: is no number of retries here: left out, as by keepalived: write fall in the "+
			"check", st.name(), st.arg(1))
		return
	}
	t.retry = int(n)
}

// isTrue returns the value of a BOOL, which may be missing.
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
