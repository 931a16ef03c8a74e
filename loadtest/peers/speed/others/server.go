// Go's net/http. GOMAXPROCS says how many cores it uses, the first argument where it listens, a
// second one that every request asks for the close of its connection.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	closes := len(os.Args) > 2
	http.HandleFunc("/plaintext", func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Type", "text/plain; charset=utf-8")
		if !closes {
			header.Set("Connection", "keep-alive")
			header.Set("Keep-Alive", "timeout=74")
		}
		io.WriteString(w, "Hello, World!")
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
