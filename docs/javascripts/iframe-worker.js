// Browsers start no worker from a file: address, so that search would fail without a web server.
// There, a hidden frame runs the worker's script instead.
if (location.protocol === "file:") {
  window.Worker = class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      this.ready = new Promise((resolve) => {
        frame.addEventListener("load", () => {
          const scope = frame.contentWindow;
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          // The page inlines the search index; the worker looks for it in its own scope.
          scope.__index = window.__index;
          const script = scope.document.createElement("script");
          script.src = new URL(url, location.href);
          script.addEventListener("load", () => resolve(scope));
          scope.document.body.append(script);
        }, { once: true });
      });
      document.body.append(frame);
      this.frame = frame;
    }

    postMessage(data) {
      this.ready.then((scope) => scope.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
