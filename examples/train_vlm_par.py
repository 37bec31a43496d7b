"""Train VLM-PAR with the plain `transformers.Trainer`: a complete script to copy and change.

    python examples/train_vlm_par.py                # drawings, embedded backbone, minutes
    python examples/train_vlm_par.py --dataset pa100k --root FOLDER --backbone google/siglip2-base-patch16-naflex

`vlm-par train` does the same and adds resuming, learning curves and a record of the run. No result of the second
command is given here: it has not been measured yet.
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments

from vlm_par_hf import (
    AugmentedDataset,
    ParAugmentation,
    ParCollator,
    ParMetrics,
    VlmParModel,
    VlmParProcessor,
    dataset_schema,
    load_par_dataset,
)
from vlm_par_hf.data.transforms import epoch_callback
from vlm_par_hf.losses import compute_priors
from vlm_par_hf.training import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", help="synthetic, pa100k or folder")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--backbone", default="embedded", help="SigLIP or SigLIP 2 repository or folder")
    parser.add_argument("--out", default="vlm_par_checkpoint", help="folder to write")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--num-train", type=int, default=2000, help="drawings to train on (synthetic only)")
    args = parser.parse_args()

    # 1. Data: a datasets.DatasetDict that carries its schema.
    sizes = {"num_train": args.num_train, "num_validation": args.num_train // 4, "num_test": args.num_train // 4}
    data = load_par_dataset(args.dataset, args.root, **(sizes if args.dataset == "synthetic" else {}))
    schema = dataset_schema(data)
    labels = data["train"].with_format("numpy", columns=["labels"])[:]["labels"]

    # 2. Model: a frozen backbone and new heads. Rare labels weigh more in the loss, because mA counts them
    # like frequent ones.
    torch.manual_seed(0)
    loss = {"kind": "ce_focal", "weighting": "sqrt", "priors": compute_priors(labels, schema)}
    model = VlmParModel.from_backbone(args.backbone, attributes=schema, loss=loss)
    processor = VlmParProcessor.from_backbone(args.backbone)

    # 3. From a part of the training images: what the heads read is standardised by their statistics, and the heads
    # start from the backbone's zero-shot answers, calibrated on their labels.
    collator = ParCollator(processor)
    plain = AugmentedDataset(data["train"].select(range(min(1024, len(data["train"])))))
    batches = torch.utils.data.DataLoader(plain, batch_size=64, collate_fn=collator)
    model.fit_pooled_statistics(batches)
    model.fit_zero_shot(batches)

    # 4. Train. Classifiers learn fast, fusion projections slowly. The epoch with the best validation mA is kept; the
    # test split is not used.
    optimizer = torch.optim.AdamW(model.parameter_groups(3e-3, weight_decay=0.01))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{args.out}/checkpoints",
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            bf16=args.bf16,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="mA",
            logging_steps=10,
            dataloader_num_workers=args.workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,  # the collator needs `image`, which is not an argument of `forward`
            label_names=["labels"],
            report_to="none",
        ),
        train_dataset=AugmentedDataset(data["train"], ParAugmentation(schema, flip=0.5, pad=0.05), seed=0),
        eval_dataset=AugmentedDataset(data["validation"]),
        data_collator=collator,
        compute_metrics=ParMetrics(schema),
        optimizers=(optimizer, None),
        callbacks=[epoch_callback()],
    )
    trainer.train()

    # 5. Save, then measure the test split once.
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    record = evaluate(args.out, data, output_dir=args.out, dataset_name=args.dataset)
    print(f"{args.dataset}, test split, {record['data']['images']} images: mA {100 * record['metrics']['mA']:.1f}")
    print(f"checkpoint, metrics.json and attributes.png: {args.out}")


if __name__ == "__main__":
    main()
