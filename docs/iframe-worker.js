// Search without a server. The theme searches in a Worker, and a browser starts none from a file.
// There, a hidden frame takes its place: it runs the same script and passes the same messages.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = (data) => this.tell(this, data)
      this.ready = new Promise((resolve) => {
        const element = frame.contentDocument.createElement("script")
        element.src = script
        element.onload = resolve
        frame.contentDocument.body.append(element)
      })
    }

    tell(target, data) {
      setTimeout(() => {
        const message = new MessageEvent("message", { data })
        target.dispatchEvent(message)
        target.onmessage?.(message)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.tell(this.inside, data))
    }
  }
}
