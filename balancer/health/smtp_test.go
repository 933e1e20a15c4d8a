package health

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// mailServer sends greeting, and then for each verb its entry in answers, or 500.
func mailServer(t *testing.T, greeting string, answers map[string]string) netip.AddrPort {
	t.Helper()
	return listen(t, func(c net.Conn) {
		fmt.Fprintf(c, "%s\r\n", greeting)
		for lines := bufio.NewScanner(c); lines.Scan(); {
			verb, rest, _ := strings.Cut(lines.Text(), " ")
			answer, ok := answers[verb]
			if !ok {
				answer = "500 no " + verb + " " + rest
			}
			fmt.Fprintf(c, "%s\r\n", answer)
			if verb == "QUIT" {
				return
			}
		}
	})
}

func TestSMTP(t *testing.T) {
	const hello = "220 mail.example.com ESMTP"
	for _, o := range []outcome{
		{"EHLO", SMTP{}, mailServer(t, hello, map[string]string{"EHLO": "250-mail\r\n250 SIZE", "QUIT": "221 bye"}),
			true, "250 to HELO"},
		{"HELO", SMTP{}, mailServer(t, hello, map[string]string{"HELO": "250 mail", "QUIT": "221 bye"}), true,
			"250 to HELO"},
		{"no answer to QUIT", SMTP{}, mailServer(t, hello, map[string]string{"EHLO": "250 mail", "QUIT": "\r"}), true,
			"250 to HELO"},
		{"refuses", SMTP{}, mailServer(t, "554 no service", nil), false, "greeting: 554 no service"},
		{"address as a name", SMTP{}, mailServer(t, hello, nil), false, "HELO: 500 no HELO [127.0.0.1]"},
		{"name", SMTP{Helo: "lb.example.com"}, mailServer(t, hello, nil), false, "HELO: 500 no HELO lb.example.com"},
		{"garbage", SMTP{}, listen(t, func(c net.Conn) { _, _ = c.Write([]byte("\x00\xff\r\n")) }), false,
			"greeting: short response…"},
		{"endless line", SMTP{}, listen(t, func(c net.Conn) {
			_,
				_ = c.Write([]byte("220 " + strings.Repeat("x", 200_000)))
		}), false,
			"greeting: no end of a line after 64 KB"},
		{"silent", SMTP{}, listen(t, silence), false, "no answer within 300ms"},
		{"closes", SMTP{}, listen(t, func(net.Conn) {}), false, "connection closed without an answer"},
		{"closed", SMTP{}, closed(t), false, "connection refused"},
	} {
		o.test(t)
	}
}
