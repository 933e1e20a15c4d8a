package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// servers are name servers, and how to ask them: see resolv.conf(5).
type servers struct {
	addresses []string // HOST:PORT
	search    []string // that completes names
	ndots     int
	timeout   time.Duration // of an exchange
	attempts  int           // with each server
}

// servers returns the server of a Query, or those of resolv.conf, which is read anew.
func (r *Resolver) servers(one netip.AddrPort) (servers, error) {
	if one.IsValid() {
		return servers{addresses: []string{one.String()}, timeout: 2 * time.Second, attempts: 2}, nil
	}
	c, err := dns.ClientConfigFromFile(r.conf)
	if err != nil {
		return servers{}, fmt.Errorf("cannot read the name servers: %w", err)
	}
	const most = 3 // MAXNS
	s := servers{search: c.Search, ndots: c.Ndots, attempts: min(max(c.Attempts, 1), 5),
		timeout: min(max(time.Duration(c.Timeout)*time.Second, time.Second), lookupTime/2)}
	for _, a := range c.Servers[:min(len(c.Servers), most)] {
		s.addresses = append(s.addresses, net.JoinHostPort(a, c.Port))
	}
	if len(s.addresses) == 0 { // resolv.conf(5): the host itself
		s.addresses = []string{net.JoinHostPort("127.0.0.1", c.Port)}
	}
	return s, nil
}

// names returns the names to ask for, in this order, until one has records.
func (s *servers) names(written string) []string {
	written = strings.ToLower(written)
	c := dns.ClientConfig{Search: s.search, Ndots: s.ndots}
	if s.search == nil {
		return []string{dns.Fqdn(written)}
	}
	return c.NameList(written)
}

// noneError is the answer that a name has no records of a type, or does not exist.
type noneError string

func (e noneError) Error() string { return string(e) }

func isNone(err error) bool {
	_, none := errors.AsType[noneError](err)
	return none
}

// exchange asks the servers, one after the other, for records of a type. The error of a server that has none is a
// noneError.
func (r *Resolver) exchange(ctx context.Context, s servers, name string, kind uint16) (f found, err error) {
	for range s.attempts {
		for _, server := range s.addresses {
			answer, fault := r.askServer(ctx, server, s.timeout, name, kind)
			if fault == nil {
				if f, fault = records(answer, name, kind); fault == nil || isNone(fault) {
					return f, fault
				}
			}
			if ctx.Err() != nil && err != nil {
				return found{}, err // the reason is that of an earlier exchange
			}
			err = fmt.Errorf("%s: %w", server, fault)
		}
	}
	return found{}, err
}

// askServer asks a server by UDP, and again by TCP if the answer does not fit a datagram.
func (r *Resolver) askServer(ctx context.Context, server string, timeout time.Duration, name string,
	kind uint16) (*dns.Msg, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer within %v", lookupTime)
	}
	query := new(dns.Msg)
	query.SetQuestion(name, kind)
	query.SetEdns0(datagram, false)
	answer, err := converse(ctx, "udp", server, timeout, query)
	if err == nil && answer.Rcode == dns.RcodeFormatError { // a server without EDNS (RFC 6891, section 7)
		query.Extra = nil
		answer, err = converse(ctx, "udp", server, timeout, query)
	}
	if err == nil && answer.Truncated {
		answer, err = converse(ctx, "tcp", server, timeout, query)
	}
	return answer, err
}

// datagram is the largest answer by UDP: it passes every path without fragments (DNS flag day 2020).
const datagram = 1232

// converse makes one exchange.
func converse(ctx context.Context, network, server string, timeout time.Duration, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, server)
	if err != nil {
		return nil, plain(err, timeout)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // also when it is cancelled
	query.Id = dns.Id()
	client := &dns.Client{Timeout: timeout}
	answer, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn})
	switch {
	case err != nil:
		return nil, plain(err, timeout)
	case !answer.Response || answer.Opcode != dns.OpcodeQuery || len(answer.Question) != 1 ||
		answer.Question[0].Qtype != query.Question[0].Qtype ||
		!strings.EqualFold(answer.Question[0].Name, query.Question[0].Name):
		return nil, errors.New("the answer is to another question")
	}
	return answer, nil
}

// plain rewords an error of the network: it leaves out this side's address, which differs from time to time.
func plain(err error, timeout time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no answer within %v", timeout)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// longestAlias bounds a chain of CNAME records.
const longestAlias = 16

// records returns the records of a question from an answer: those of the name, or of the one that it is an alias of.
func records(m *dns.Msg, name string, kind uint16) (found, error) {
	switch m.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		return found{}, noneError(name + " does not exist (NXDOMAIN)")
	default:
		return found{}, errors.New(dns.RcodeToString[m.Rcode])
	}
	ttl := uint32(1 << 31)
	owner := name
	for range longestAlias {
		at := owner
		for _, r := range m.Answer {
			if c, ok := r.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, owner) {
				at, ttl = c.Target, min(ttl, c.Hdr.Ttl)
				break
			}
		}
		if at == owner {
			break
		}
		owner = at
	}
	f := found{hosts: map[string][]netip.Addr{}}
	for _, r := range m.Answer {
		h := r.Header()
		if !strings.EqualFold(h.Name, owner) || h.Rrtype != kind || h.Class != dns.ClassINET {
			continue
		}
		ttl = min(ttl, h.Ttl)
		if v, ok := r.(*dns.SRV); ok {
			v.Target = strings.ToLower(v.Target)
			f.services = append(f.services, v)
		} else if a := address(r); a.IsValid() {
			f.addresses = append(f.addresses, a)
		}
	}
	for _, r := range m.Extra {
		if a := address(r); a.IsValid() {
			host := strings.ToLower(r.Header().Name)
			f.hosts[host] = append(f.hosts[host], a)
			ttl = min(ttl, r.Header().Ttl)
		}
	}
	if f.addresses = sorted(f.addresses); len(f.addresses)+len(f.services) == 0 {
		return found{}, noneError(fmt.Sprintf("%s has no record of type %s", name, dns.TypeToString[kind]))
	}
	f.ttl = time.Duration(ttl) * time.Second
	return f, nil
}

// address returns the address of an A or AAAA record, the zero Addr for another record.
func address(r dns.RR) (a netip.Addr) {
	switch r := r.(type) {
	case *dns.A:
		a, _ = netip.AddrFromSlice(r.A.To4())
	case *dns.AAAA:
		a, _ = netip.AddrFromSlice(r.AAAA.To16())
	}
	return a
}
