package health

import (
	"context"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// DNS sends a query to a name server.
type DNS struct {
	TCP     bool   // over TCP; else over UDP
	Query   string // name
	Type    string // "A"
	Rcode   string // "NOERROR"
	Records int    // least number of records in an answer with NOERROR
}

type dnsChecker struct {
	DNS
	question dns.Question
	rcode    int
}

func (p DNS) prepare() (checker, error) {
	if _, ok := dns.IsDomainName(p.Query); !ok {
		return nil, fmt.Errorf("query: %q is not a domain name", p.Query)
	}
	kind, ok := dns.StringToType[p.Type]
	if !ok {
		return nil, fmt.Errorf("query_type: %q is not a type of records", p.Type)
	}
	rcode, ok := dns.StringToRcode[p.Rcode]
	if !ok {
		return nil, fmt.Errorf("rcode: %q is not a response code", p.Rcode)
	}
	return dnsChecker{DNS: p, question: dns.Question{Name: dns.Fqdn(p.Query), Qtype: kind, Qclass: dns.ClassINET},
		rcode: rcode}, nil
}

const (
	untilDone = 1000 * time.Hour // longer than any check
	// maxDatagram is enough for servers that exceed the 512 bytes without EDNS (RFC 1035, section 2.3.4). Each check in
	// flight allocates it.
	maxDatagram = 4096
)

func (c dnsChecker) check(ctx context.Context, at endpoint) (string, error) {
	network := "udp"
	if c.TCP {
		network = "tcp"
	}
	conn, end, err := at.dial(ctx, network)
	if err != nil {
		return "", err
	}
	defer end()
	query := &dns.Msg{MsgHdr: dns.MsgHdr{Id: dns.Id(), RecursionDesired: true}, Question: []dns.Question{c.question}}
	client := &dns.Client{Timeout: untilDone} // else two seconds
	answer, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn, UDPSize: maxDatagram})
	if err != nil {
		return "", err
	}
	got := dns.RcodeToString[answer.Rcode]
	switch {
	case answer.Rcode != c.rcode:
		return "", fmt.Errorf("%s, want %s", got, c.Rcode)
	case c.rcode != dns.RcodeSuccess || len(answer.Answer) >= c.Records || answer.Truncated: // the rest may not fit
	case c.Records == 1:
		return "", fmt.Errorf("%s, but no record: want one for %s %s", got, c.question.Name, c.Type)
	default:
		return "", fmt.Errorf("%s, but %d in the answer: want %d for %s %s", got, len(answer.Answer), c.Records,
			c.question.Name, c.Type)
	}
	return fmt.Sprintf("%s, %d in the answer", got, len(answer.Answer)), nil
}
