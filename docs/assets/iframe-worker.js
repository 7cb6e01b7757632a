// Search of the theme runs in a worker, which browsers refuse to pages that were opened from disk. There, and there alone, a
// hidden frame takes its place: it runs the same script, and messages go to and from it. The theme's own stand-in, which has
// this name too, is loaded over the network.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const waiting = [];
      this.send = (data) => waiting.push(data);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.src = "about:blank";
      const begin = () => {
        document.body.append(frame);
        const inner = frame.contentWindow;
        const script = (source, done) => {
          const element = inner.document.createElement("script");
          element.src = source;
          element.onload = done;
          inner.document.body.append(element);
        };
        inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        inner.importScripts = (...sources) =>
          sources.reduce((before, source) => before.then(() => new Promise((done) => script(source, done))), Promise.resolve());
        script(url, () => {
          this.send = (data) => inner.dispatchEvent(new MessageEvent("message", { data }));
          waiting.forEach((data) => this.send(data));
        });
      };
      if (document.body) begin();
      else addEventListener("DOMContentLoaded", begin);
    }
    postMessage(data) {
      this.send(data);
    }
  };
  window.Worker = window.IFrameWorker;
}
