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

func laterInDirector() []laterKey {
	return []laterKey{{name: "metrics"}}
}

func laterInRealserver() []laterKey {
	return []laterKey{
		{name: "metrics"},
	}
}

// The documented values of keys of which this version has only some. The names that it has, see each key's
// reader, come before these.

func laterSchedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}
}
