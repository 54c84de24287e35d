package virtio

// worker is the goroutine that serves one queue.
type worker struct {
	q    *Queue
	done chan struct{} // closed when the goroutine has returned
}

func startWorker(e *Env, q *Queue, handle func(*Queue) error) *worker {
	w := &worker{q: q, done: make(chan struct{})}
	q.resume()
	go func() {
		defer close(w.done)
		for {
			// What is there already comes first: its kick may have come before a pause.
			if err := handle(q); err != nil {
				e.Broken(err)
				return
			}
			if !q.Wait() {
				return
			}
		}
	}()
	return w
}
