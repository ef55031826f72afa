// What the browser tests ask of JupyterLab's page.
window.workbook = {
  errors: [],
  shown: () => jupyterapp.shell.currentWidget,
  kernel: () => workbook.shown().sessionContext.session?.kernel,
  cells: () => workbook.shown().content.widgets,

  // The command registry is steadier than the menus.
  async ready() {
    if (!window.jupyterapp?.commands.hasCommand("notebook:run-all-cells")) return false;
    await workbook.shown().context.ready;
    await workbook.shown().sessionContext.ready;
    return (await workbook.kernel()?.info)?.status === "ok";
  },

  // Also hears an error that a widget catches, or that no cell shows.
  runAll() {
    workbook.kernel().iopubMessage.connect((_, { header, content }) => {
      if (header.msg_type === "error")
        workbook.errors.push(`${content.ename}: ${content.evalue}`);
    });
    jupyterapp.commands.execute("notebook:run-all-cells");
  },

  idle: () => workbook.kernel().status === "idle",

  finished() {
    const open = workbook.cells().some(({ model }) =>
      model.type === "code" && model.sharedModel.getSource().trim() &&
      !model.executionCount);
    return workbook.idle() && (!open || workbook.errors.length > 0);
  },

  takeErrors: () => workbook.errors.splice(0),

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
      const [width, height] = [e.naturalWidth ?? e.width, e.naturalHeight ?? e.height];
      if (!width || !height) continue;
      const canvas = new OffscreenCanvas(width, height).getContext("2d");
      canvas.drawImage(e, 0, 0);
      const bytes = canvas.getImageData(0, 0, width, height).data;
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
      seen.push(Array.from(digest.slice(0, 8)).join("."));
    }
    return seen.join(" ");
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

  shutDown: () => workbook.shown().sessionContext.shutdown(),
};
