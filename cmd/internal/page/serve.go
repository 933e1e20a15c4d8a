package page

import (
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed assets
var embedded embed.FS

// policy lets the page load files of this server only: no inline scripts or styles, nothing of other servers. Trusted
// Types keep even its own scripts from turning a string into markup.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; " +
	"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// maxIDs bounds the services whose histories a request may ask for.
const maxIDs = 200

// Handler serves the page at "/" and its files and data below "/page/". Addresses in the page are relative: it may be
// served below a prefix that is stripped.
func (p *Page) Handler() http.Handler {
	files, err := fs.Sub(embedded, "assets")
	if err != nil {
		panic(err) // the name is a constant
	}
	all, tag := http.NewServeMux(), digest(files)
	asset := func(pattern, name string) {
		content, err := fs.ReadFile(files, name)
		if err != nil {
			panic(err) // listed a moment ago
		}
		all.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
			h.Set("Cache-Control", "no-cache")
			h.Set("ETag", `"`+tag+`"`)
			if r.Header.Get("If-None-Match") == `"`+tag+`"` {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			send(w, r, content)
		})
	}
	asset("GET /{$}", "index.html")
	entries, err := fs.ReadDir(files, "page")
	if err != nil {
		panic(err) // embedded
	}
	for _, e := range entries {
		asset("GET /page/"+e.Name(), "page/"+e.Name())
	}
	all.HandleFunc("GET /page/live", func(w http.ResponseWriter, r *http.Request) {
		since, _ := strconv.ParseUint(r.FormValue("since"), 10, 64) // 0: everything
		if r.FormValue("boot") != p.boot {
			since = 0
		}
		p.asked.Store(time.Now().UnixNano())
		if a := p.live(since, time.Now()); a != nil {
			a.Page = tag
			sendJSON(w, r, a)
			return
		}
		http.Error(w, "the director has only just started: ask again", http.StatusServiceUnavailable)
	})
	all.HandleFunc("GET /page/history", func(w http.ResponseWriter, r *http.Request) {
		after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64) // 0: everything
		var ids []int
		for text := range strings.SplitSeq(r.FormValue("ids"), ",") {
			if id, err := strconv.Atoi(text); err == nil && len(ids) < maxIDs {
				ids = append(ids, id)
			}
		}
		sendJSON(w, r, p.history(after, ids))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		all.ServeHTTP(w, r)
	})
}

// digest returns one digest of all files. A browser whose page has another one loads the page again.
func digest(files fs.FS) string {
	sum := sha256.New()
	err := fs.WalkDir(files, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		_, _ = io.WriteString(sum, name) // writing to a hash never fails
		_, _ = sum.Write(content)
		return err
	})
	if err != nil {
		panic(err) // embedded
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

func sendJSON(w http.ResponseWriter, r *http.Request, v any) {
	content, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	send(w, r, content)
}

// compressFrom is the size in bytes from which on an answer is compressed.
const compressFrom = 1400

// send writes the body of an answer. A write fails if the browser has gone; that needs no report.
func send(w http.ResponseWriter, r *http.Request, content []byte) {
	w.Header().Set("Vary", "Accept-Encoding")
	if len(content) < compressFrom || !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content)
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant
	}
	_, _ = z.Write(content)
	_ = z.Close()
}
