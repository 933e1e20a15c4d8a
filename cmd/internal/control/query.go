package control

import (
	"net/http"
	"net/url"
)

// AnswerQuery is Answer for an fn that takes the request's query.
func (s *Server) AnswerQuery(path string, fn func(url.Values) (any, error)) {
	s.query("GET "+path, fn)
}

// DoQuery is Do for an fn that takes the request's query.
func (s *Server) DoQuery(path string, fn func(url.Values) (any, error)) { s.query("POST "+path, fn) }

func (s *Server) query(pattern string, fn func(url.Values) (any, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		JSON(func() (any, error) { return fn(r.URL.Query()) }).ServeHTTP(w, r)
	})
}
