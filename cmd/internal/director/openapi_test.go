package director

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"vstun/cmd/internal/api"
)

var update = flag.Bool("update", false, "write the schemas of openapi.yaml anew")

// TestOpenAPIPaths: the description is valid, and has the server's routes and no others.
func TestOpenAPIPaths(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(description)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	s, err := api.Listen(filepath.Join(t.TempDir(), "d.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	(&director{control: s}).serveControl()
	var routes, described []string
	for _, p := range s.Patterns() {
		routes = append(routes, strings.ReplaceAll(p, "...}", "}"))
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	slices.Sort(routes)
	slices.Sort(described)
	if !slices.Equal(routes, described) {
		t.Errorf("the server has the routes\n%s\nopenapi.yaml has\n%s", strings.Join(routes, "\n"),
			strings.Join(described, "\n"))
	}
}

// answers are the types of package api that a director answers with. The schemas are theirs, and those of the types in
// them.
var answers = []any{api.DirectorStatus{}, api.Reload{}, api.Applied{}, api.RealserverUsage{}, api.Connection{},
	api.Explanation{}, api.Captured{}, api.Peers{}}

// TestOpenAPISchemas: the schemas are as the types are. With -update they are written anew.
func TestOpenAPISchemas(t *testing.T) {
	head, _, ok := bytes.Cut(description, []byte("\n  schemas:\n"))
	if !ok {
		t.Fatal("openapi.yaml has no schemas")
	}
	w := &schemaWriter{comments: comments(t)}
	for _, v := range answers {
		w.add(reflect.TypeOf(v))
	}
	want := slices.Concat(head, []byte("\n  schemas:\n"), w.out.Bytes())
	if bytes.Equal(want, description) {
		return
	}
	if !*update {
		t.Fatal("openapi.yaml is not as the types of package api are: go test ./cmd/internal/director -run " +
			"TestOpenAPISchemas -update")
	}
	if err := os.WriteFile("openapi.yaml", want, 0o644); err != nil {
		t.Fatal(err)
	}
}

// comments returns the comments of the types of package api ("Peers"), and of their fields ("Peers.Sync").
func comments(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../api/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	all := map[string]string{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.TYPE {
				continue
			}
			spec := decl.Specs[0].(*ast.TypeSpec)
			all[spec.Name.Name] = comment(decl.Doc)
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						all[spec.Name.Name+"."+name.Name] = strings.TrimSpace(comment(f.Doc) + " " + comment(f.Comment))
					}
				}
			}
		}
	}
	return all
}

func comment(g *ast.CommentGroup) string { return strings.Join(strings.Fields(g.Text()), " ") }

// schemaWriter writes schemas in YAML.
type schemaWriter struct {
	out      bytes.Buffer
	comments map[string]string
	done     []reflect.Type
}

// add writes the schema of a struct, and those of the structs in it.
func (w *schemaWriter) add(t reflect.Type) {
	if slices.Contains(w.done, t) {
		return
	}
	w.done = append(w.done, t)
	fmt.Fprintf(&w.out, "    %s:\n      type: object\n", t.Name())
	if text := w.comments[t.Name()]; text != "" {
		fmt.Fprintf(&w.out, "      description: %q\n", text)
	}
	var required []string
	fields := reflect.VisibleFields(t)
	for _, f := range fields {
		if name, options, ok := jsonName(f); ok && !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	if len(required) > 0 {
		fmt.Fprintf(&w.out, "      required: [%s]\n", strings.Join(required, ", "))
	}
	w.out.WriteString("      properties:\n")
	var more []reflect.Type
	for _, f := range fields {
		name, options, ok := jsonName(f)
		if !ok {
			continue
		}
		schema, structs := schemaOf(f.Type, !strings.Contains(options, "omit"))
		more = append(more, structs...)
		owner := t.Name()
		if len(f.Index) > 1 { // of an embedded struct
			owner = t.FieldByIndex(f.Index[:1]).Type.Name()
		}
		if text := w.comments[owner+"."+f.Name]; text != "" && !strings.Contains(schema, "$ref: \"#/components") {
			schema += fmt.Sprintf(", description: %q", text)
		}
		fmt.Fprintf(&w.out, "        %s: {%s}\n", name, strings.TrimPrefix(schema, ", "))
	}
	for _, s := range more {
		w.add(s)
	}
}

// jsonName returns a field's name in JSON and the options of its tag; ok is false for a field that is not in JSON.
func jsonName(f reflect.StructField) (name, options string, ok bool) {
	name, options, _ = strings.Cut(f.Tag.Get("json"), ",")
	return name, options, name != "" && name != "-" && f.IsExported()
}

// schemaOf returns the schema of a type, and the structs in it. With nullable, the empty value of a list, map or
// pointer is null.
func schemaOf(t reflect.Type, nullable bool) (schema string, structs []reflect.Type) {
	null := ""
	if nullable {
		null = ", nullable: true"
	}
	switch t.Kind() {
	case reflect.Pointer:
		schema, structs = schemaOf(t.Elem(), false)
		if len(structs) > 0 {
			null = "" // a reference has no siblings
		}
		return schema + null, structs
	case reflect.Slice:
		if t == reflect.TypeFor[api.Ports]() {
			return "type: array, items: {oneOf: [{type: integer}, {type: string}]}", nil
		}
		schema, structs = schemaOf(t.Elem(), false)
		return "type: array" + null + ", items: {" + schema + "}", structs
	case reflect.Map:
		schema, structs = schemaOf(t.Elem(), false)
		return "type: object" + null + ", additionalProperties: {" + schema + "}", structs
	case reflect.Struct:
		if t.String() == "time.Time" {
			return "type: string, format: date-time", nil
		}
		return fmt.Sprintf("$ref: \"#/components/schemas/%s\"", t.Name()), []reflect.Type{t}
	case reflect.String:
		return "type: string", nil
	case reflect.Bool:
		return "type: boolean", nil
	case reflect.Float64:
		return "type: number", nil
	case reflect.Interface:
		return "nullable: true", nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "type: integer, minimum: 0", nil
	}
	return "type: integer", nil
}
