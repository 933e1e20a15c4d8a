package migrate

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"vstun/cmd/internal/config"
)

// trackFile is keepalived's track_file: a file with a number that changes weights.
type trackFile struct {
	of   *statement
	path string
	factor
	used bool // by a FILE_CHECK
}

// factor is the factor of a file's number. keepalived calls it weight.
type factor struct {
	times   int
	reverse bool
}

func (k *keepalived) defineFile(block *statement) {
	f := &trackFile{of: block, factor: factor{times: 1}}
	for _, st := range block.block {
		switch st.name() {
		case "file":
			f.path, _ = st.rest()
		case "weight":
			f.read(k, nil, st, maxFileWeight)
		}
	}
	k.files[block.arg(1)] = f
}

// The largest weights of a file in keepalived: in its definition, and in FILE_CHECK.
const (
	maxFileWeight  = 254
	maxCheckWeight = 1<<31 - 1
)

// read reads "weight -5 reverse".
func (f *factor) read(k *keepalived, s *service, st *statement, most int64) {
	n, err := strconv.ParseInt(st.arg(1), 10, 64)
	if err != nil || n < -most || n > most {
		k.noteOf(s, st.Place, "weight %q of a track_file: left out, as by keepalived: want %d to %d",
			st.arg(1), -most, most)
		return
	}
	f.times, f.reverse = int(n), st.arg(2) == "reverse"
}

// fileName returns the name of a FILE_CHECK's track_file, or "".
func fileName(check *statement) string {
	if st := check.find("track_file"); st != nil {
		return st.arg(1)
	}
	return ""
}

// fileInterval is the interval of a file check. keepalived reads a file when it changes.
const fileInterval = time.Second

func (k *keepalived) fileCheck(s *service, c *check, block *statement, _ settings) bool {
	c.interval, c.timeout, c.up = fileInterval, fileInterval, true // the file's number is known at once
	name := fileName(block)
	f := k.files[name]
	if f == nil {
		k.noteOf(s, c.Place, "FILE_CHECK: there is no track_file %q: left out: write a check of type file", name)
		return false
	}
	if !filepath.IsAbs(f.path) || !utf8.ValidString(f.path) || strings.ContainsRune(f.path, 0) {
		k.noteOf(s, c.Place, "FILE_CHECK: the file of track_file %s, %q, is not an absolute path: left out: write a "+
			"check of type file", name, f.path)
		return false
	}
	by := f.factor
	for _, st := range block.block {
		switch st.name() {
		case "track_file":
		case "weight":
			by.read(k, s, st, maxCheckWeight)
		default:
			k.unknown(s, block, st)
		}
	}
	for _, st := range f.of.block {
		switch st.name() {
		case "file", "weight":
		case "init_file":
			k.noteOf(s, st.Place, "init_file %s: no counterpart: a file that is missing has the number 0: let what "+
				"writes the file make it", strings.Join(st.words[1:], " "))
		default:
			k.unknown(s, f.of, st)
		}
	}
	c.add("path", quote(f.path))
	c.add("factor", strconv.Itoa(by.times))
	if by.reverse {
		c.add("reverse", "true")
	}
	return true
}

// clientCertificate is the content of keepalived's SSL block, for every SSL_GET.
type clientCertificate struct{ cert, key string }

// defineSSL reads the SSL block. The checks get its files only if these can be read here: otherwise the director would
// refuse its configuration.
func (k *keepalived) defineSSL(block *statement) {
	var own clientCertificate
	for _, st := range block.block {
		first, _ := st.rest()
		switch st.name() {
		case "certificate":
			own.cert = first
		case "key":
			own.key = first
		case "ca":
			k.note(st.Place, "ca %s: keepalived loads it, but checks none of the servers' certificates: set ca, and "+
				"verify = true, in the https checks", first)
		case "password":
			k.note(st.Place, "password: no counterpart: write the key without a password: openssl pkey -in KEY -out "+
				"NEW")
		default:
			k.unknown(nil, block, st)
		}
	}
	if own == (clientCertificate{}) {
		return
	}
	if own.key == "" {
		own.key = own.cert
	}
	if !k.include {
		k.note(block.Place, "SSL: its files are not read here: write cert = %q and key = %q in the https checks",
			own.cert, own.key)
		return
	}
	if err := config.CheckCertificate(own.cert, own.key); err != nil {
		k.note(block.Place, "SSL: %v: no client certificate: write cert = %q and key = %q in the https checks once "+
			"they are right", err, own.cert, own.key)
		return
	}
	k.ssl = &own
}
