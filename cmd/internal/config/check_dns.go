package config

import "github.com/miekg/dns"

// readQuery reads the question of a DNS check, and the answer that it expects.
func readQuery(t *table, c *Check, own bool) {
	const want = `a domain name such as "www.example.com"`
	c.Query = t.graphic("query", c.Query, want)
	if _, ok := dns.IsDomainName(c.Query); !ok && t.values["query"] != nil && c.Query != "" {
		t.faultAt("query", "%s is not a domain name: want %s", show(c.Query), want)
	}
	if own && c.Query == "" && t.values["query"] == nil {
		t.faultAt("query", "missing: want %s", want)
	}
	c.QueryType = t.word("query_type", c.QueryType, "A", "AAAA", "CAA", "CNAME", "DNSKEY", "DS", "HTTPS", "MX", "NAPTR",
		"NS", "PTR", "SOA", "SRV", "SVCB", "TXT")
	c.Records = t.integer("records", c.Records, 0, 1000, "0 (any NOERROR) to 1000")
	c.Rcode = t.word("rcode", c.Rcode, "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
}
