package config

import "reflect"

// laterKey is a documented key that this version does not act on. The value that changes nothing, the documented
// default, may stand there; any other is refused, in other words than an unknown key is. An implementation of a key
// takes its line out of the list below.
type laterKey struct {
	name string
	only any // the value that may stand there; nil: none
}

func (l laterKey) allows(value any) bool { return l.only != nil && reflect.DeepEqual(value, l.only) }

func laterInService() []laterKey {
	return []laterKey{
		{"quorum", int64(1)},
		{"hysteresis", int64(0)},
		{name: "sorry_server"},
		{name: "check"},
	}
}

func laterInServiceRealserver() []laterKey {
	return []laterKey{
		{name: "check"},
	}
}

// The documented values of keys of which this version has only some. The names that it has, see each key's
// reader, come before these.

func laterSchedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}
}
