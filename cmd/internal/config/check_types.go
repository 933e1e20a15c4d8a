package config

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"vstun/balancer/health"
	"vstun/balancer/method"
)

// Check is a [service.check] with the keys that a [service.realserver.check] replaces. It finds out whether a
// realserver works. A field that its type does not have is zero.
type Check struct {
	Type   string // one of CheckTypes
	Direct bool   // check the realserver's own address; else the VIPs, by its forwarding method; not of nat
	Port   uint16 // only for types with a port
	// DefaultPort means that Port is the service's first, in place of which a realserver may have its own port.
	DefaultPort bool
	Interval    time.Duration // 100 ms to 24 h
	Timeout     time.Duration // at most Interval
	Rise        int           // consecutive successes until it is up
	Fall        int           // consecutive failures until it is down
	Up          bool          // state before the first results

	Path   string        // of http and https
	Host   string        // Host header; "": the address that is checked
	Status []StatusRange // codes that are a success, at least one
	Body   string        // regular expression; "": any
	SNI    string        // of https; "": Host
	CAFile string        // "": the system's authorities
	CA     string        // content of CAFile, PEM
	Verify bool          // verify the certificate

	CertFile string // of https: the client's own certificate; "": it has none
	Cert     string // content of CertFile, PEM
	KeyFile  string // "": CertFile
	Key      string // its private key, PEM

	Send      string // of tcp and udp
	SendHex   string // in place of Send: "00 1f"
	Expect    string // regular expression; "": nothing
	ExpectHex string // in place of Expect: "00 1? ??"

	Query     string // of dns: a domain name
	QueryType string // "A"
	Rcode     string // "NOERROR"
	Records   int    // least number of records with NOERROR, 0 to 1000

	Helo    string   // of smtp; "": the director's address
	Command []string // of exec: an absolute path, and arguments

	File    string // of file: an absolute path
	Factor  int    // the file's number times Factor is added to the weight; 0: a number other than 0 is a failure
	Reverse bool   // use -Factor; with Factor 0, only the number 0 is a failure
}

// StatusRange is HTTP status codes from First to Last, within 100 to 599.
type StatusRange = health.StatusRange

// CheckType describes a type of check: the facts that the programs need beside its probe in package health.
type CheckType struct {
	Name          string
	Local         bool // it examines the director's host, and sends the realserver nothing
	Weighs        bool // its result may raise the realserver's weight
	PerRealserver bool // its probe differs between the realservers of a service

	keys []*keyGroup // beside the keys that every type has
	// transports are the possible transport protocols: the check uses the service's if it is among them, else the
	// first.
	transports []string
	probe      func(c *Check, s *Service, r *RealserverRef) health.Probe
}

// checkTypes are all types of checks.
var checkTypes = []*CheckType{
	{Name: "tcp", transports: []string{"tcp"}, keys: []*keyGroup{portKey, payloadKeys},
		probe: func(c *Check, _ *Service, _ *RealserverRef) health.Probe {
			return health.TCP{Send: c.payload(), Expect: c.Expect, ExpectHex: c.ExpectHex}
		}},
	{Name: "http", transports: []string{"tcp"}, keys: []*keyGroup{portKey, requestKeys},
		probe: func(c *Check, s *Service, r *RealserverRef) health.Probe { return c.http(s, r) }},
	{Name: "https", transports: []string{"tcp"}, keys: []*keyGroup{portKey, requestKeys, tlsKeys},
		probe: func(c *Check, s *Service, r *RealserverRef) health.Probe { return c.http(s, r) }},
	{Name: "dns", transports: []string{"udp", "tcp"}, keys: []*keyGroup{portKey, queryKeys},
		probe: func(c *Check, s *Service, _ *RealserverRef) health.Probe {
			return health.DNS{TCP: s.Protocol == "tcp", Query: c.Query, Type: c.QueryType, Rcode: c.Rcode,
				Records: c.Records}
		}},
	{Name: "udp", transports: []string{"udp"}, keys: []*keyGroup{portKey, payloadKeys},
		probe: func(c *Check, _ *Service, _ *RealserverRef) health.Probe {
			return health.UDP{Send: c.payload(), Expect: c.Expect, ExpectHex: c.ExpectHex}
		}},
	{Name: "ping", probe: func(*Check, *Service, *RealserverRef) health.Probe { return health.Ping{} }},
	{Name: "smtp", transports: []string{"tcp"}, keys: []*keyGroup{portKey, heloKey},
		probe: func(c *Check, _ *Service, _ *RealserverRef) health.Probe { return health.SMTP{Helo: c.Helo} }},
	{Name: "exec", Local: true, PerRealserver: true, keys: []*keyGroup{commandKey},
		probe: func(c *Check, s *Service, r *RealserverRef) health.Probe {
			return health.Exec{Command: c.Command, Env: checkEnvironment(s, r)}
		}},
	{Name: "file", Local: true, Weighs: true, keys: []*keyGroup{fileKeys},
		probe: func(c *Check, _ *Service, _ *RealserverRef) health.Probe {
			return health.File{Path: c.File, Factor: c.Factor, Reverse: c.Reverse}
		}},
}

// keyGroup is a group of keys that one or more types of checks share.
type keyGroup struct {
	names   []string
	private bool // a realserver's check of another type does not inherit the keys
	// read reads the keys for every type of check. own is set if c's type has the keys. Otherwise read only checks
	// their values, and the caller reports the keys. nil: the caller reads the keys.
	read     func(t *table, c *Check, own bool)
	defaults func(c *Check)         // sets defaults; nil: zero values
	inherit  func(c, former *Check) // copies the keys' fields
	values   func(c *Check) []CheckKey
}

// keyGroups are all groups. They are read, and a reload's changes are shown, in this order.
var keyGroups = []*keyGroup{portKey, requestKeys, tlsKeys, payloadKeys, queryKeys, fileKeys, heloKey, commandKey}

var (
	portKey = &keyGroup{names: []string{"port"},
		inherit: func(c, former *Check) { c.Port, c.DefaultPort = former.Port, former.DefaultPort }}

	requestKeys = &keyGroup{names: []string{"path", "host", "status", "body"}, read: readRequest,
		defaults: func(c *Check) { c.Path, c.Status = "/", []StatusRange{{First: 200, Last: 399}} },
		inherit: func(c, former *Check) {
			c.Path, c.Host, c.Status, c.Body = former.Path, former.Host, former.Status, former.Body
		},
		values: func(c *Check) []CheckKey {
			return []CheckKey{{Name: "path", Value: some(c.Path)}, {Name: "host", Value: some(c.Host)},
				{Name: "status", Value: some(statusNames(c.Status))}, {Name: "body", Value: quoted(c.Body)}}
		}}

	tlsKeys = &keyGroup{names: []string{"sni", "ca", "verify", "cert", "key"}, read: readTLS,
		defaults: func(c *Check) { c.Verify = true },
		inherit: func(c, former *Check) {
			c.SNI, c.CA, c.CAFile, c.Verify = former.SNI, former.CA, former.CAFile, former.Verify
			c.CertFile, c.Cert, c.KeyFile, c.Key = former.CertFile, former.Cert, former.KeyFile, former.Key
		},
		values: func(c *Check) []CheckKey {
			return []CheckKey{{Name: "sni", Value: some(c.SNI)},
				{Name: "ca", Value: some(c.CAFile), content: c.CA, Changed: "other certificates"},
				{Name: "verify", Value: c.Verify},
				{Name: "cert", Value: some(c.CertFile), content: c.Cert, Changed: "another certificate"},
				{Name: "key", Value: some(c.KeyFile), content: c.Key, Changed: "another key"}}
		}}

	payloadKeys = &keyGroup{names: []string{"send", "send_hex", "expect", "expect_hex"}, private: true,
		read: func(t *table, c *Check, _ bool) {
			readSend(t, c)
			readExpect(t, c)
		},
		inherit: func(c, former *Check) {
			c.Send, c.SendHex, c.Expect, c.ExpectHex = former.Send, former.SendHex, former.Expect, former.ExpectHex
		},
		values: func(c *Check) []CheckKey {
			return []CheckKey{{Name: "send", Value: quoted(c.Send)}, {Name: "send_hex", Value: some(c.SendHex)},
				{Name: "expect", Value: quoted(c.Expect)}, {Name: "expect_hex", Value: some(c.ExpectHex)}}
		}}

	queryKeys = &keyGroup{names: []string{"query", "query_type", "rcode", "records"}, read: readQuery,
		defaults: func(c *Check) { c.QueryType, c.Rcode, c.Records = "A", "NOERROR", 1 },
		inherit: func(c, former *Check) {
			c.Query, c.QueryType, c.Rcode, c.Records = former.Query, former.QueryType, former.Rcode, former.Records
		},
		values: func(c *Check) []CheckKey {
			return []CheckKey{{Name: "query", Value: some(c.Query)}, {Name: "query_type", Value: some(c.QueryType)},
				{Name: "rcode", Value: some(c.Rcode)}, {Name: "records", Value: c.Records}}
		}}

	fileKeys = &keyGroup{names: []string{"path", "factor", "reverse"}, read: readFileKeys,
		defaults: func(c *Check) { c.Factor = 1 },
		inherit: func(c, former *Check) {
			c.File, c.Factor, c.Reverse = former.File, former.Factor, former.Reverse
		},
		values: func(c *Check) []CheckKey {
			return []CheckKey{{Name: "path", Value: some(c.File)}, {Name: "factor", Value: c.Factor},
				{Name: "reverse", Value: c.Reverse}}
		}}

	heloKey = &keyGroup{names: []string{"helo"},
		read: func(t *table, c *Check, _ bool) {
			c.Helo = t.graphic("helo", c.Helo, `a host's name such as "lb.example.com"`)
		},
		inherit: func(c, former *Check) { c.Helo = former.Helo },
		values:  func(c *Check) []CheckKey { return []CheckKey{{Name: "helo", Value: some(c.Helo)}} }}

	commandKey = &keyGroup{names: []string{"command"},
		read: func(t *table, c *Check, own bool) {
			c.Command = readCommand(t, c.Command)
			if own && len(c.Command) == 0 && t.values["command"] == nil {
				t.faultAt("command", "missing: want %s", wantCommand)
			}
		},
		inherit: func(c, former *Check) { c.Command = former.Command },
		values: func(c *Check) []CheckKey {
			return []CheckKey{{Name: "command", Value: some(CommandLine(c.Command))}}
		}}
)

// CheckTypes returns the names of all types of checks.
func CheckTypes() []string { return checkTypesWith("") }

// LookupCheckType returns the row of the named type, or the zero value for an unknown name.
func LookupCheckType(name string) CheckType {
	for _, row := range checkTypes {
		if row.Name == name {
			return *row
		}
	}
	return CheckType{}
}

// Has reports whether the type has a key that not every type has.
func (row CheckType) Has(key string) bool {
	return slices.ContainsFunc(row.keys, func(g *keyGroup) bool { return slices.Contains(g.names, key) })
}

// checkTypesWith returns the names of the types that have a key; with "" it returns all names.
func checkTypesWith(key string) (names []string) {
	for _, row := range checkTypes {
		if key == "" || row.Has(key) {
			names = append(names, row.Name)
		}
	}
	return names
}

// Row returns the row of the check's type.
func (c *Check) Row() CheckType { return LookupCheckType(c.Type) }

// has reports whether the check's type has a key.
func (c *Check) has(key string) bool { return c.Row().Has(key) }

// transport returns the transport protocol of the check in a service of that protocol, or "" if it has none.
func (c *Check) transport(service string) string {
	all := c.Row().transports
	switch {
	case len(all) == 0:
		return ""
	case slices.Contains(all, service):
		return service
	}
	return all[0]
}

// Probe returns the probe of the check for r, a realserver of s.
func (c *Check) Probe(s *Service, r *RealserverRef) health.Probe { return c.Row().probe(c, s, r) }

// payload returns the bytes that the check sends.
func (c *Check) payload() string {
	if c.SendHex == "" {
		return c.Send
	}
	b, _ := health.ParseBytes(c.SendHex) // readSend has checked it
	return string(b)
}

// http returns the probe of http and https for r. A direct check names the host that clients name.
func (c *Check) http(s *Service, r *RealserverRef) health.Probe {
	p := health.HTTP{TLS: c.Type == "https", Path: c.Path, Host: c.Host, Status: c.Status, Body: c.Body, SNI: c.SNI,
		CA: c.CA, Verify: c.Verify, Cert: c.Cert, Key: c.Key}
	if p.Host == "" && (c.Direct || r.Forward == method.NAT) {
		p.Host = health.Host(s.VIPs[0], c.Port, p.TLS)
	}
	return p
}

// checkEnvironment returns the variables that name r, a realserver of s, to a program.
func checkEnvironment(s *Service, r *RealserverRef) []string {
	return []string{"VSTUN_SERVICE=" + s.Name, "VSTUN_VIP=" + s.VIPs[0].String(),
		fmt.Sprintf("VSTUN_PORT=%d", s.Ports[0].First), "VSTUN_REALSERVER=" + r.Address.String(),
		fmt.Sprintf("VSTUN_REALSERVER_PORT=%d", cmp.Or(r.Port, s.Ports[0].First))}
}
