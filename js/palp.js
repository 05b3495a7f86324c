import { app } from "../../scripts/app.js";

// A LoRA that was trained or exported just now stands in every loader's list, without a reload of the page.
const WRITERS = new Set(["PalpTrainLora", "ExportPalpLora"]);

app.registerExtension({
  name: "palp.refreshLists",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!WRITERS.has(nodeData.name)) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (...args) {
      before?.apply(this, args);
      app.refreshComboInNodes();
    };
  },
});
