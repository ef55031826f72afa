// What the browser tests ask of JupyterLab's page.
window.workbook = {
  errors: [],
  asked: new Set(),
  answered: () => {},
  shown: () => jupyterapp.shell.currentWidget,
  kernel: () => workbook.shown().sessionContext.session?.kernel,
  cells: () => workbook.shown().content.widgets,

  // The command registry is steadier than the menus.
  async open(name) {
    await jupyterapp.started;
    await jupyterapp.restored;
    const panel = await jupyterapp.commands.execute("docmanager:open", { path: name });
    await panel.context.ready;
    await panel.sessionContext.ready;
    await workbook.kernel().info;
    workbook.listen(workbook.kernel());
  },

  // Whether another notebook can be opened.
  free: () => !jupyterapp.shell.currentWidget?.sessionContext,

  // What is asked of the kernel is open until it says that it is idle again after it.
  // That it says last of all: what it has to tell, the page knows by then.
  listen(kernel) {
    workbook.asked.clear();
    kernel.anyMessage.connect((_, { msg, direction }) => {
      if (direction === "send" && msg.channel === "shell")
        workbook.asked.add(msg.header.msg_id);
    });
    kernel.iopubMessage.connect((_, { header, content, parent_header }) => {
      // Also an error that a widget catches, or that no cell shows.
      if (header.msg_type === "error")
        workbook.errors.push(`${content.ename}: ${content.evalue}`);
      if (header.msg_type !== "status" || content.execution_state !== "idle") return;
      workbook.asked.delete(parent_header.msg_id);
      if (!workbook.asked.size) workbook.answered();
    });
  },

  // Until all is answered and drawn. A widget that was moved while the kernel was busy
  // asks again as soon as it is idle, and that counts too.
  async settle() {
    while (workbook.asked.size) {
      await new Promise((answered) => { workbook.answered = answered; });
      await workbook.frame();
    }
    await workbook.frame();
  },

  frame: () => new Promise((drawn) =>
    requestAnimationFrame(() => setTimeout(drawn, 0))),

  within: (limit, what) => Promise.race([what, new Promise((_, late) =>
    setTimeout(() => late(Error(`still running after ${limit / 1000} s`)), limit))]),

  // What went wrong.
  async runAll(limit) {
    const all = jupyterapp.commands.execute("notebook:run-all-cells");
    try {
      await workbook.within(limit, all.then(workbook.settle));
    } catch (late) {
      return [late.message];
    }
    const waits = workbook.cells().some(({ model }) =>
      model.type === "code" && model.sharedModel.getSource().trim() &&
      !model.executionCount);
    const errors = workbook.errors.splice(0);
    return waits && !errors.length ? ["a cell did not run"] : errors;
  },

  // What is to be seen once all that was asked is answered.
  async look(panel) {
    await workbook.within(60_000, workbook.settle());
    const said = (what) => [...panel.querySelectorAll(what)].map((e) => e.innerText);
    const words = said(".widget-html"), readouts = said(".widget-slider .widget-readout");
    const picture = await workbook.pixels(panel);
    return [picture, words, readouts, workbook.errors.splice(0)];
  },

  // Of each slider its label, and whether it is in sight.
  sliders: (panel) => [...panel.querySelectorAll(".widget-slider")].map((e) =>
    [e.querySelector(".widget-label").innerText,
      e.checkVisibility({ visibilityProperty: true }) && e.offsetWidth * e.offsetHeight > 0]),

  // Widgets are drawn a little after the cell has run.
  async drawn(panel, patience) {
    const until = performance.now() + patience;
    let seen = -1;
    while (performance.now() < until) {
      const last = seen;
      await new Promise((later) => setTimeout(later, 100));
      seen = panel.querySelectorAll("*").length;
      if (seen === last && await workbook.pixels(panel)) return;
    }
  },

  markPanels() {
    const panels = workbook.cells().filter(({ model }) =>
      model.getMetadata("tags")?.includes("widget"));
    panels.forEach(({ node }, i) => { node.dataset.panel = i; });
    return panels.map((_, i) => i);
  },

  // Pixels, not addresses: a new address can hold the old picture.
  async pixels(panel) {
    const seen = [];
    for (const e of panel.querySelectorAll(".jp-OutputArea img, .jp-OutputArea canvas")) {
      if (e.tagName === "IMG") await e.decode().catch(() => {});
      if (e.naturalWidth ?? e.width) seen.push(await workbook.digest(e));
    }
    return seen.join(" ");
  },

  // What an address held when it was looked at, it still holds.
  digests: new WeakMap(),
  async digest(e) {
    const [address, known] = workbook.digests.get(e) ?? [];
    if (e.src && e.src === address) return known;
    const [width, height] = [e.naturalWidth ?? e.width, e.naturalHeight ?? e.height];
    const canvas = new OffscreenCanvas(width, height)
      .getContext("2d", { willReadFrequently: true });
    canvas.drawImage(e, 0, 0);
    const bytes = canvas.getImageData(0, 0, width, height).data;
    const all = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const digest = Array.from(all.slice(0, 8)).join(".");
    workbook.digests.set(e, [e.src, digest]);
    return digest;
  },

  // The page reports the text of a control that a squeezed box hides: only the boxes'
  // own overflow tells.
  clipped(panel) {
    const found = new Set();
    const said = (e) => (e.innerText ?? "").trim().split("\n")[0] || "picture";
    const edge = panel.getBoundingClientRect().right + 1;
    for (const e of panel.querySelectorAll(
        ".jp-OutputArea .jupyter-widgets, .jp-OutputArea .jupyter-widgets *")) {
      if (e.getBoundingClientRect().right > edge) found.add(`${said(e)}: beyond the edge`);
      for (let box = e; box !== panel; box = box.parentElement) {
        const { overflowX, overflowY } = getComputedStyle(box);
        const wide = box.scrollWidth - box.clientWidth;
        const high = box.scrollHeight - box.clientHeight;
        if ((overflowX !== "visible" && wide > 2) || (overflowY !== "visible" && high > 2))
          found.add(`${said(box)}: clipped by ${wide} x ${high} px, ${box.className}`);
      }
    }
    return [...found];
  },

  // What a picture shows, for those who cannot see it.
  unnamed: (panel) => [...panel.querySelectorAll(".jp-OutputArea img")]
    .filter((img) => !(img.alt || img.title).trim())
    .map(() => "a picture has no alternative text"),

  // Without a question whether to save.
  async close() {
    await workbook.shown().sessionContext.shutdown();
    workbook.shown().dispose();
    workbook.errors.splice(0);
    workbook.asked.clear();
  },
};
