package migrate_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vstun/cmd/internal/migrate"
)

// seed adds the files of testdata.
func seed(f *testing.F, pattern string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		f.Fatalf("%s: no files, %v", pattern, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
}

// large matches what may be the bounds of a long sequence.
var large = regexp.MustCompile(`(?s)~(SEQ.*([0-9]{3}|0x)|(SEQ|LST).*~(SEQ|LST).*~(SEQ|LST).*~(SEQ|LST))`)

// fuzz wants of any text one line of error, or a configuration that the director takes.
func fuzz(t *testing.T, read importer, text []byte) {
	if large.Match(text) {
		t.Skip("a sequence of thousands takes seconds: see TestManyBlocks")
	}
	o := options()
	o.Include = false
	i, err := read("x.conf", text, o)
	if err != nil {
		if i != nil || !strings.HasPrefix(err.Error(), "x.conf:") || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, and %+v", err, i)
		}
		return
	}
	checkImport(t, i)
}

func FuzzKeepalived(f *testing.F) {
	seed(f, "testdata/keepalived/*.conf")
	f.Fuzz(func(t *testing.T, text []byte) { fuzz(t, migrate.Keepalived, text) })
}

func FuzzIPVSAdm(f *testing.F) {
	seed(f, "testdata/ipvsadm/*.rules")
	f.Fuzz(func(t *testing.T, text []byte) { fuzz(t, migrate.IPVSAdm, text) })
}
